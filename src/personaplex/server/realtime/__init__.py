"""OpenAI's Realtime protocol at `/v1/realtime`: for the duplex model and for the cascade.

`wire` reads messages, `configuration` what a session is told to be, `formats` sound. `machine` (with `by_turns` and
`duplex`) decides what follows from a message or from an event of the conversation, without a socket or a clock;
`dialect` words it for older clients, `journal` numbers and keeps it. `live` connects a machine with a conversation,
`routes` with a socket.
"""
