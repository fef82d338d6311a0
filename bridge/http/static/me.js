// Who is looking at the page, and what they may do.

const RANKS = { viewer: 1, operator: 2, admin: 3 };

export const me = {
  name: null,
  role: null,
  required: false,

  set(session) {
    this.name = session?.name ?? null;
    this.role = session?.role ?? null;
    this.required = session?.token_required ?? true;
  },

  /** Whether one with this role may do it. The bridge decides; the page only does not offer the rest. */
  may(role) {
    return (RANKS[this.role] ?? 0) >= RANKS[role];
  },
};
