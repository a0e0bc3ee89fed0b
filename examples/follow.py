# Follow a document live: print its text whenever it changes, and who is here.
# Run it: pip install '.[client]' && python examples/follow.py ws://127.0.0.1:1234/my-room
# A second argument names another text of the document than "text".
import sys

import anyio
from ycore_adapters.client import GaveUpError, connect

from ycore.doc import Doc
from ycore.provider import Event, Lost, PresenceChanged


async def follow(url: str, name: str) -> None:
    doc = Doc()
    text = doc.get_text(name)
    async with connect(url, doc) as client:

        def on_event(event: Event) -> None:
            if isinstance(event, PresenceChanged):
                print("here:", *client.peers.values(), flush=True)
            elif isinstance(event, Lost):
                print(f"lost: {event.reason}; again in {event.retry_in:.1f} s", flush=True)

        client.observe(on_event)
        client.state = {"user": {"name": "follow.py"}}
        await client.synced()
        print(text, flush=True)
        text.observe(lambda event: print(f"----\n{text}", flush=True))
        await client.disconnected()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("which room? Such as ws://127.0.0.1:1234/my-room")
    try:
        anyio.run(follow, sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "text")
    except GaveUpError as exc:
        sys.exit(f"the server refuses: {exc}")
    except ValueError as exc:
        sys.exit(str(exc))
    except KeyboardInterrupt:
        pass
