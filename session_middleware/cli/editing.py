"""Commands that change sessions one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from session_middleware.cli import options
from session_middleware.cli.options import command
from session_middleware.cli.output import output_options, print_result, say
from session_middleware.cli.reading import explain_session
from session_middleware.display.text import plural

if TYPE_CHECKING:
    from session_middleware.models import Closed
    from session_middleware.session import Session
    from session_middleware.sessions import Sessions
    from session_middleware.storage.types import DeletionCounts


@command("rename last 'Refund of order 7'", "rename thread-42 ''")
@options.session_argument
@click.argument("title")
def rename(session: Session, title: str) -> None:
    """Give a session a title. An empty one removes it; the id stays."""
    session = session.update(title=title)
    say(f"session {session.id!r} " + (f"is titled {session.title!r}" if session.title else "has no title"))


@command("tag last vip urgent", "tag thread-42 --remove urgent", "tag thread-42")
@options.session_argument
@click.argument("tags", nargs=-1)
@click.option("--remove", "removed", multiple=True, metavar="TAG", help="A tag to remove; may be repeated.")
def tag(session: Session, tags: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Add tags to a session, remove some, and print them."""
    wanted = tuple(each for each in dict.fromkeys((*session.tags, *tags)) if each not in removed)
    if wanted != session.tags:
        session = session.update(tags=wanted)
    say(f"session {session.id!r} has {', '.join(map(repr, session.tags)) or 'no tags'}")


@command("pin last", "pin thread-42 --why 'legal hold' --by bob")
@options.session_argument
@click.option("--why", metavar="TEXT", help="The reason, recorded with the pin and the event.")
@click.option("--by", metavar="NAME", help="The person who asked for it.")
def pin(session: Session, why: str | None, by: str | None) -> None:
    """Exempt a session from expiry and from sweeps."""
    explain_session(session._sessions, session.pin(why, by=by).id)


@command("unpin last")
@options.session_argument
def unpin(session: Session) -> None:
    """End the exemption of a pinned session. Its idle time starts now."""
    explain_session(session._sessions, session.unpin().id)


@command(
    "fork last",
    "fork thread-42 --id thread-42-b --title 'Second try'",
    "fork thread-42 --at 3f9a1c2e",
)
@options.session_argument
@click.option(
    "--at", metavar="ID", help="A message or a run, before which the fork ends; or a checkpoint, with which it ends."
)
@click.option("--id", "new_id", metavar="ID", help="The id of the fork. [default: a new one]")
@click.option("--title", metavar="TEXT", help="The title of the fork.")
def fork(session: Session, at: str | None, new_id: str | None, title: str | None) -> None:
    """Make a new session that begins as this one did.

    show --full has the ids of messages and runs.
    """
    made = session.fork(at, id=new_id, title=title)
    say(f"session {made.id!r} is a fork of {session.id!r}, with {plural(made.message_count, 'message')}")


@command("merge thread-42 thread-44 --yes", "merge last thread-44 --state append_messages")
@options.id_argument("primary")
@options.id_argument("secondary")
@click.option(
    "--state",
    type=click.Choice(["keep_primary", "append_messages"]),
    default="keep_primary",
    show_default=True,
    help="Leave the graph's state as it is, or append the messages of the second session.",
)
@options.yes_option
def merge(sessions: Sessions, primary: str, secondary: str, state: Any, yes: bool) -> None:
    """Make the second session a part of the first one, of the same owner. Its id then leads to the first one."""
    from session_middleware.cli.opening import confirm, id_of

    first, second = (sessions.get(id_of(sessions, each, whole=yes)) for each in (primary, secondary))
    confirm(f"Make session {second.id!r} a part of {first.id!r}?", yes=yes)
    merged = first.merge(second, state=state)
    say(f"session {second.id!r} is a part of {merged.id!r}, which has {plural(merged.message_count, 'message')}")


_ENDINGS = {"completed": "complete", "failed": "fail", "abandoned": "abandon"}  # and their methods


@command("close last", "close thread-42 thread-43 --as abandoned --reason 'no answer'", "close --until 30d --yes")
@options.id_argument("session_ids", nargs=-1)
@options.filters
@click.option("--as", "ending", type=click.Choice([*_ENDINGS]), default="completed", show_default=True, help="How.")
@click.option("--reason", metavar="TEXT", help="Recorded with the event.")
@options.yes_option
def close(
    sessions: Sessions,
    session_ids: tuple[str, ...],
    where: dict[str, Any],
    ending: Closed,
    reason: str | None,
    yes: bool,
) -> None:
    """End sessions as completed, failed or abandoned.

    They are named by their ids, or by filters, which leave out those that have ended.
    """
    from session_middleware.cli.opening import chosen_sessions, confirm, counted
    from session_middleware.lifecycle import OPEN, check_transition

    found = chosen_sessions(sessions, session_ids, where)
    found = [session for session in found if session_ids or session.status in OPEN]
    for session in found:
        check_transition(session.id, session.status, ending)  # of all, before the first is closed
    if len(found) > 1:
        confirm(f"Close {counted(found)}?", yes=yes)
    for session in found:
        getattr(session, _ENDINGS[ending])(reason=reason or "by_user")
    say(f"{counted(found)}: {ending}" if found else "no open session found")


@command("delete last", "delete thread-42 --dry-run", "delete --tag test --status expired --yes")
@options.id_argument("session_ids", nargs=-1)
@options.filters
@options.dry_run_option
@options.yes_option
@output_options
def delete(
    sessions: Sessions,
    session_ids: tuple[str, ...],
    where: dict[str, Any],
    dry_run: bool,
    yes: bool,
    output: str | None,
) -> None:
    """Delete sessions, or an archive. The ids stay reserved for their owners.

    Sessions are named by their ids, or by filters.
    """
    from session_middleware.cli.health import deletion_picture
    from session_middleware.cli.opening import chosen_sessions, confirm, counted
    from session_middleware.storage.types import DeletionCounts

    archived = _archive_of(sessions, session_ids, where, whole=yes)
    if archived is not None:
        found, what = [archived], f"the archive of {archived!r}"
        counts = [DeletionCounts(1)]
    else:
        chosen = chosen_sessions(sessions, session_ids, where, whole=yes)
        found, what = [session.id for session in chosen], counted(chosen)
        counts = [_counts_of(session) for session in chosen] if dry_run else []
        if running := sum(session.is_running for session in chosen):
            what += f", with {plural(running, 'run')} in progress"
    if not dry_run:
        if found:
            confirm(f"Delete {what}?", yes=yes)
        counts = [sessions.delete(each) for each in found]
    total = DeletionCounts(*map(sum, zip(*counts, strict=True)))
    print_result({**total._asdict(), "dry_run": dry_run}, deletion_picture(total, dry_run=dry_run), output)


def _archive_of(sessions: Sessions, given: Sequence[str], where: Mapping[str, Any], *, whole: bool) -> str | None:
    """The id of the archived session that is named alone."""
    from session_middleware.cli.opening import id_of

    if len(given) != 1 or where:
        return None
    chosen = id_of(sessions, given[0], deleted=True, whole=whole)
    return chosen if sessions.find(chosen) is None and sessions.explain(chosen).status == "archived" else None


def _counts_of(session: Session) -> DeletionCounts:
    """The counts that deleting the session would return."""
    from session_middleware.storage.types import DeletionCounts

    stats = session.stats()
    return DeletionCounts(
        sessions=1,
        checkpoints=stats.checkpoint_count,
        messages=len(session.messages(all_versions=True, branch="all")),
        tool_calls=stats.tool_call_count,
        memories=len(session.memory.list()),
        bytes_freed=stats.bytes,
    )


COMMANDS = (rename, tag, pin, unpin, fork, merge, close, delete)
