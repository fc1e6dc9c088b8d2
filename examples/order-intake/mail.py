"""A small SMTP server: writes every message to a maildir folder and prints its subject.

    python mail.py --listen 127.0.0.1:7461 --folder mail

A message whose Message-ID is in the folder already is answered, but not kept twice.
"""

from __future__ import annotations

import argparse
import asyncio
import mailbox
import signal
from email import message_from_bytes, policy
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session


class Postman:
    """Keeps what arrives."""

    def __init__(self, folder: Path) -> None:
        self._box = mailbox.Maildir(folder, create=True)
        self._known = {message["Message-ID"] for message in self._box}

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        content = envelope.original_content or b""
        message = message_from_bytes(content, policy=policy.default)
        if message["Message-ID"] not in self._known:
            self._box.add(mailbox.MaildirMessage(content))
            self._known.add(message["Message-ID"])
            print(f"to {', '.join(envelope.rcpt_tos)}: {message['Subject']}", flush=True)
        return "250 Message accepted"


async def serve(host: str, port: int, folder: Path) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    postman = Postman(folder)
    server = await loop.create_server(lambda: SMTP(postman, enable_SMTPUTF8=True, loop=loop), host, port)
    async with server:
        await stop.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description="A small SMTP server that keeps what it gets.")
    parser.add_argument("--listen", default="127.0.0.1:7461", help="host:port")
    parser.add_argument("--folder", type=Path, default=Path("mail"), help="maildir folder; made when it is not there")
    arguments = parser.parse_args()
    host, _, port = arguments.listen.rpartition(":")
    asyncio.run(serve(host, int(port), arguments.folder))


if __name__ == "__main__":
    main()
