"""A web page on which people compare responses; what they say goes into a `PreferenceStore`.

What lives here: which address shows or does what. What does not: who may ask (``page_guard.py``), how texts look
(``page_views.py``), agreement (``raters.py``), the command that serves it (``../label.py``).

Forms and links work without JavaScript; ``templates/page.js`` adds keys, and time in sight. Nothing comes from
elsewhere, and no request names a file: templates and the three files beside them are read when the page is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

try:
    import jinja2
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
    from starlette.routing import Route

    from .page_forms import (
        RATER,
        Form,
        clean_name,
        endpoint,
        form_endpoint,
        number_of,
        page_of,
        rater_of,
        read_comment,
        read_seconds,
        read_strength,
        switches,
        whole,
        with_switches,
    )
    from .page_guard import Guard
    from .page_views import SIDES, PairView, opinion_view, response_of, row, side_of
    from .raters import disputed_pairs, krippendorff_alpha, summarize_raters
except ImportError as error:
    message = f"the labelling page needs starlette, jinja2 and krippendorff ({error}): pip install 'textgen_env[label]'"
    raise ImportError(message, name=error.name) from error

from textgen_env.render import visible

from .store import PreferenceStore
from .store_records import Said, Task, left_side

FOLDER = Path(__file__).with_name("templates")
ASSETS = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}


class Page:
    """The page on one store.

    Args:
        store: pairs, and where choices go.
        title: what is labelled, for the heading.
        replay: show what was said, and take no choices.
    """

    def __init__(self, store: PreferenceStore, *, title: str = "", replay: bool = False) -> None:
        self.store, self.replay = store, replay
        self._templates = jinja2.Environment(
            loader=jinja2.DictLoader({path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.html")}),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["visible"] = visible
        self._assets = {name: (FOLDER / name).read_bytes() for name in ASSETS}
        version = hashlib.blake2b(b"".join(self._assets.values()), digest_size=6).hexdigest()
        self._templates.globals.update(title=visible(title), replay=replay, side_of=side_of, version=version)

    def routes(self) -> list[Route]:
        """All addresses."""
        pages = {
            "/": self.home,
            "/name": self.ask_name,
            "/compare": self.compare,
            "/compare/{number}": self.compare_again,
            "/choices": self.own_choices,
            "/disputed": self.disputed,
            "/raters": self.raters,
            "/pairs/{number}": self.one_pair,
            "/ready": self.ready,
        }
        actions = {"/name": self.set_name, "/choose": self.choose, "/undo": self.undo}
        shown = [Route(path, endpoint(handler), methods=["GET"]) for path, handler in pages.items()]
        done = [Route(path, form_endpoint(handler), methods=["POST"]) for path, handler in actions.items()]
        return [*shown, *done, *(Route(f"/{name}", self._asset(name), methods=["GET"]) for name in ASSETS)]

    # --- who asks -----------------------------------------------------------------------------------------------------

    def home(self, request: Request) -> Response:
        """To where one begins."""
        if self.replay:
            return RedirectResponse("/pairs/1", 303)
        return RedirectResponse("/compare" if rater_of(request) else "/name", 303)

    def ask_name(self, request: Request) -> Response:
        """The form for a rater's name."""
        return self._html(request, "name.html", problem="")

    def set_name(self, request: Request, form: Form) -> Response:
        """Take a name."""
        try:
            name = clean_name(form.get("name", ""))
        except ValueError as error:
            return self._html(request, "name.html", problem=str(error), status=422)
        answer = RedirectResponse("/compare", 303)
        answer.set_cookie(RATER, quote(name), httponly=True, samesite="lax", max_age=365 * 86400)
        return answer

    # --- comparing ----------------------------------------------------------------------------------------------------

    def compare(self, request: Request) -> Response:
        """The next pair, or that there is none."""
        who = self._who(request)
        return self._compare(request, who, self.store.next_task(who))

    def compare_again(self, request: Request) -> Response:
        """A pair that the rater has judged or skipped."""
        who, number = self._who(request), number_of(request)
        task = self.store.task_again(number, who)
        if task is None:
            raise HTTPException(404, f"pair {number} is not yours to judge: it was not given to you, or has been taken")
        return self._compare(request, who, task)

    def _compare(self, request: Request, who: str, task: Task | None) -> Response:
        progress = self.store.progress(who)
        if task is None:
            return self._html(request, "done.html", progress=progress, last=progress.last and row(progress.last))
        before = [each for each in self.store.said(who=who, number=task.number) if not each.skipped]
        return self._html(
            request,
            "compare.html",
            pair=PairView.of_task(task),
            elapsed=f"{task.elapsed:.1f}",
            before=row(before[0]) if before else None,
            progress=progress,
            last=progress.last and row(progress.last),
        )

    def ready(self, request: Request) -> Response:
        """Whether there is something to compare: what a page that waits asks now and then."""
        who = rater_of(request)
        return JSONResponse({"ready": bool(who) and not self.replay and self.store.has_task(who or "")})

    def choose(self, request: Request, form: Form) -> Response:
        """Write a choice down; the answer is sent when it is on the disk."""
        who, number = self._who(request), whole(form.get("number", ""))
        side = form.get("choice", "")
        if side == "":  # Enter in a field
            return RedirectResponse(with_switches("/compare", form), 303)
        if number is None or side not in (*SIDES, "tie", "cannot tell", "skip"):
            raise HTTPException(400, "number and choice must be those of the form")
        if not self.store.was_given(number, who):
            raise HTTPException(409, f"pair {number} was not given to {visible(who)}")
        if side == "skip":
            self.store.skip(number, who)
        else:
            left = left_side(number, who)
            self.store.choose(
                number,
                who,
                response_of(side, left),
                left=left,
                strength=read_strength(form),
                comment=read_comment(form),
                seconds=read_seconds(form),
            )
        return RedirectResponse(with_switches("/compare", form), 303)

    def undo(self, request: Request, form: Form) -> Response:
        """Take the last choice back, and ask again."""
        who = self._who(request)
        number = self.store.undo(who, whole(form.get("last", "")))
        again = number is not None and self.store.task_again(number, who) is not None
        return RedirectResponse(with_switches(f"/compare/{number}" if again else "/compare", form), 303)

    # --- what was said ------------------------------------------------------------------------------------------------

    def own_choices(self, request: Request) -> Response:
        """All choices of the rater, the last first."""
        who = self._who(request)
        said = self.store.said(who=who, withdrawn=True)[::-1]
        page, part, pages = page_of(request, said)
        return self._html(request, "choices.html", rows=[row(each) for each in part], page=page, pages=pages)

    def disputed(self, request: Request) -> Response:
        """Pairs on which raters differ, with one another or with the reward model."""
        opinions, who = self.store.opinions(), rater_of(request)
        by_number: dict[int, list[Said]] = {}
        for each in self.store.said():
            by_number.setdefault(each.number, []).append(each)
        told = [each for said in by_number.values() if self._may_see(who, said) for each in said]
        kinds = disputed_pairs(told, opinions)
        page, part, pages = page_of(request, [(number, kind) for kind, found in enumerate(kinds) for number in found])
        rows = [
            {
                "among_raters": kind == 0,
                "view": PairView.of(number, by_number[number][0].pair, left_side(number, who or "")),
                "opinion": opinion_view(opinions.get(number), left_side(number, who or "")),
                "preferred": [
                    (visible(each.pair.who or ""), each.pair.choice) for each in by_number[number] if not each.skipped
                ],
            }
            for number, kind in part
        ]
        return self._html(
            request, "disputed.html", rows=rows, counts=[len(each) for each in kinds], page=page, pages=pages
        )

    def raters(self, request: Request) -> Response:
        """Everybody in numbers, and how far they agree."""
        said, opinions = self.store.said(), self.store.opinions()
        models = sorted({visible(each.model) for each in opinions.values()})
        return self._html(
            request,
            "raters.html",
            alpha=krippendorff_alpha(said),
            summaries=summarize_raters(said, opinions),
            progress=self.store.progress(rater_of(request) or ""),
            overlap=self.store.overlap,
            models=models,
        )

    def one_pair(self, request: Request) -> Response:
        """A pair with all that was said of it, and the reward model's opinion."""
        who, number = rater_of(request), number_of(request)
        pair = self.store.pair(number)
        if pair is None:
            raise HTTPException(404, f"there is no pair {number}")
        said, left = self.store.said(number=number, withdrawn=True), left_side(number, who or "")
        may_see = self._may_see(who, said)
        mine = [each for each in said if who is not None and each.pair.who == who]
        return self._html(
            request,
            "pair.html",
            pair=PairView.of(number, pair, left),
            said=[(row(each), side_of(each.pair.choice, left)) for each in (said if may_see else mine)],
            may_see=may_see,
            opinion=opinion_view(self.store.opinions().get(number), left) if may_see else None,
            mine=any(each.withdrawn is None for each in mine) and not self.replay,
            pairs=self.store.progress("").pairs,
        )

    def _may_see(self, who: str | None, said: Iterable[Said]) -> bool:
        """What others think of a pair is shown to those who have judged it, and when enough have: not to sway anybody.

        Args:
            who: asks.
            said: of the pair.
        """
        judges = {each.pair.who for each in said if not each.skipped and not each.withdrawn}
        return self.replay or who in judges or len(judges) >= self.store.overlap

    # --- inside -------------------------------------------------------------------------------------------------------

    def _who(self, request: Request) -> str:
        """The rater.

        Raises:
            HTTPException: a redirect to the form for names; nothing is to be said in a replay.
        """
        if self.replay:
            raise HTTPException(403, "this is a replay: no choices are taken")
        who = rater_of(request)
        if who is None:
            raise HTTPException(303, headers={"location": "/name"})
        return who

    def _asset(self, name: str) -> Callable[[Request], Any]:
        async def send(_: Request) -> Response:
            forever = {"cache-control": "private, max-age=31536000, immutable"}  # another version has another address
            return Response(self._assets[name], media_type=ASSETS[name], headers=forever)

        return send

    def _html(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        who = rater_of(request) or ""
        text = self._templates.get_template(template).render(
            **values, who=visible(who), path=request.url.path, switches=switches(request.query_params)
        )
        return HTMLResponse(text, status)

    async def on_error(self, request: Request, error: Exception) -> Response:
        """What people see where something is not to be had."""
        code = error.status_code if isinstance(error, HTTPException) else 500
        if isinstance(error, HTTPException) and code == 303:
            return Response(status_code=303, headers=error.headers)
        said = error.detail if isinstance(error, HTTPException) else "this went wrong; what was saved is safe"
        return self._html(request, "error.html", code=code, said=visible(said), status=code)


def make_app(
    store: PreferenceStore,
    *,
    title: str = "",
    replay: bool = False,
    names: Iterable[str] = (),
    token: str | None = None,
) -> Guard:
    """The page as an ASGI application.

    Args:
        store, title, replay: see `Page`.
        names, token: see `Guard`.
    """
    page = Page(store, title=title, replay=replay)
    handlers: Any = {HTTPException: page.on_error, Exception: page.on_error}
    return Guard(Starlette(routes=page.routes(), exception_handlers=handlers), names=names, token=token)
