"""The embedded broker. The only room that imports amqtt."""
