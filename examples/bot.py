# A bot that edits along: it writes 😄 where somebody types :smile:, as one more client of the room.
# Run it: pip install '.[client]' && python examples/bot.py ws://127.0.0.1:1234/my-room
# (a server: ycore serve; an editor: the README's)
import sys

import anyio
from ycore_adapters.client import GaveUpError, connect

from ycore.doc import Doc
from ycore.doc import Event as Change
from ycore.provider import Event, Lost

EMOJI = {":smile:": "😄", ":tada:": "🎉", ":heart:": "💜"}


async def edit_along(url: str) -> None:
    doc = Doc()
    text = doc.get_text("text")

    def replace(change: Change | None = None) -> None:
        for code, emoji in EMOJI.items():
            while (at := str(text).find(code)) >= 0:
                with doc.transaction():  # the others see it happen at once
                    text.delete(at, len(code))
                    text.insert(at, emoji)

    def on_event(event: Event) -> None:
        if isinstance(event, Lost):
            print(f"lost: {event.reason}; again in {event.retry_in:.1f} s", flush=True)

    async with connect(url, doc) as client:
        client.observe(on_event)
        client.state = {"user": {"name": "Emoji bot", "color": "#ffbc42"}}
        await client.synced()
        replace()
        text.observe(replace)
        print("editing along", flush=True)
        await client.disconnected()  # that is, until it is stopped, or refused


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("which room? Such as ws://127.0.0.1:1234/my-room")
    try:
        anyio.run(edit_along, sys.argv[1])
    except GaveUpError as exc:
        sys.exit(f"the server refuses: {exc}")
    except ValueError as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        pass
