// A button for what cannot be undone: it asks once more.

import { fill, h } from "./dom.js";

export function sureButton(text, question, act) {
  const button = h(
    "button",
    {
      type: "button",
      class: "quiet danger",
      onclick: () => {
        if (button.classList.toggle("sure")) return fill(button, question);
        fill(button, text);
        return act();
      },
      onblur: () => {
        button.classList.remove("sure");
        fill(button, text);
      },
    },
    text,
  );
  return button;
}
