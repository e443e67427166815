"""`veil chat`: a conversation in the terminal; rows are made while one types."""

from __future__ import annotations

import sys
from contextlib import ExitStack, nullcontext
from dataclasses import replace

from veil.commands.chat_commands import obey
from veil.commands.chat_terminal import Terminal
from veil.commands.conversation import ChatOptions, Conversation
from veil.commands.hidden_lengths import SAID
from veil.commands.interrupts import interrupts_set
from veil.commands.model_choice import opened
from veil.commands.stream import printable
from veil.gateway.failures import ApiError
from veil.gateway.served import ServedModel


def run(request: ChatOptions) -> None:
    """Talk until end of file; a terminal gets an editor, anything else is read line by line. veil's errors."""
    with ExitStack() as models:
        served = models.enter_context(opened(request.choice))

        def open_model(name: str) -> ServedModel:
            choice = request.choice
            if choice.server is not None:
                choice = replace(choice, server_bundle=name, bundle=None, name=None)
            else:
                choice = replace(choice, model=name, bundle=None, name=None)
            with ExitStack() as fresh:
                found = fresh.enter_context(opened(choice))
                models.close()  # the one before
                models.push(fresh.pop_all())
            return found

        conversation = Conversation(served, request, open_model)
        if sys.stdin.isatty() and sys.stdout.isatty():
            Terminal(conversation).run()
        else:
            _lines(conversation)


def _lines(conversation: Conversation) -> None:
    """One message a line on standard input, one answer each on standard output."""
    for line in sys.stdin:
        if not line.strip():
            continue
        try:
            answer = obey(conversation, line.strip(), lambda text: None)
        except (ApiError, ValueError) as error:  # a command's; the next line may be right
            print(f"veil: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
            continue
        if answer is None:
            hidden = conversation.served.hybrid.padding is not None
            with interrupts_set(conversation.interrupted, SAID) if hidden else nullcontext():
                answer = conversation.ask(line.strip(), lambda text: None)
        print(printable(answer), flush=True)
