"""What lines that begin with a slash do in `veil chat`."""

from __future__ import annotations

import json
from collections.abc import Callable

from veil.commands.conversation import Conversation, stats_of

HELP = """\
Enter sends · Alt+Enter (or Esc, then Enter) starts a line · Ctrl-C stops an answer · Ctrl-D leaves
/reset         begin a new conversation
/retry         answer the last message once more
/system TEXT   instructions for the model; without a text, what they are; - for none
/attach FILE   send a text file with the next message
/save FILE     write the conversation into a file
/load FILE     go on with one that was saved
/model NAME    go on with another model; without a name, which it is
/stats         what the last answer cost, and everything since the start
/help          this"""


def obey(conversation: Conversation, line: str, show: Callable[[str], None]) -> str | None:
    """What a command has to say; None if the line is a message."""
    name, _, rest = line.partition(" ")
    with_text = {"/system": conversation.instruct, "/model": conversation.switch}
    with_file = {"/attach": conversation.attach, "/save": conversation.save, "/load": conversation.load}
    if line == "/reset":
        conversation.reset()
        return "A new conversation."
    if line == "/help":
        return HELP
    if line == "/stats":
        return json.dumps(stats_of(conversation))
    if line == "/retry":
        return conversation.retry(show)
    if name in with_text:
        return with_text[name](rest.strip())
    if name in with_file:
        return with_file[name](rest.strip()) if rest.strip() else f"{name} needs a file: {name} FILE"
    if line.startswith("/") and line[1:].isalpha():
        return f"There is no command {line}; /help lists them."
    return None
