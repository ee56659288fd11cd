"""The view of one URL of Socket.IO, which brings each event to the namespace that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.views.decorators.csrf import csrf_exempt

from gunicorn_realtime.plumbing.events import ENVIRON_KEY, Answer, Event, Outcome, Refuse
from gunicorn_realtime.protocols.engineio import Refusal

from .emitting import check_namespace
from .engineio_opening import SocketIOOptions, refuse, take_opening
from .handler_view import check_values, roll_back
from .publishing import to_bytes

if TYPE_CHECKING:
    from .socketio_view import SocketIOView


class ConnectionRefused(Exception):
    """A client may not connect to a namespace.

    Args:
        message: The client's `connect_error` gets it.
        data: What else it gets, JSON-able.
    """

    def __init__(self, message: str = "Connection refused", data: Any = None) -> None:
        super().__init__(message)
        self.message = message
        self.data = data


@dataclass(frozen=True)
class Endpoint:
    """What a URL serves: the handlers of each namespace, and the options of their connections.

    Args:
        handlers: By namespace. A request for a new connection goes through the first of them.
        values: Attributes that each handler gets, as of `as_view`.
    """

    handlers: Mapping[str, type[SocketIOView]]
    options: SocketIOOptions
    values: Mapping[str, Any]

    @classmethod
    def of(cls, handlers: Mapping[str, type[SocketIOView]], values: Mapping[str, Any]) -> Self:
        """Return the endpoint of some handlers.

        Raises:
            TypeError: A value is for no attribute, or there are no handlers.
            ValueError: A namespace or a value can't be right.
        """
        if not handlers:
            raise TypeError("give the handlers of at least one namespace")
        for namespace, handler in handlers.items():
            check_namespace(namespace)
            for name in values:
                if not hasattr(handler, name) or name in handler.http_method_names:
                    raise TypeError(f"{handler.__name__} has no attribute {name!r} to be set")
        first = next(iter(handlers.values()))
        check_values(first, values)
        return cls(dict(handlers), SocketIOOptions.of(first, values), dict(values))

    def view(self) -> Callable[..., HttpResponseBase]:
        first = next(iter(self.handlers.values()))

        def view(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            return self._respond(request, *args, **kwargs)

        names = ", ".join(handler.__name__ for handler in self.handlers.values())
        view.__name__ = view.__qualname__ = f"socketio({names})"
        view.__doc__ = first.__doc__
        # As Django's `as_view` does: what decorates `dispatch` may mark the view.
        view.__dict__.update(first.dispatch.__dict__)
        view.view_class = first  # type: ignore[attr-defined]
        return csrf_exempt(view)

    def _respond(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        event: Event | None = request.META.get(ENVIRON_KEY)
        if event is None and request.method == "OPTIONS":
            response = take_opening(request, self.options)
            assert isinstance(response, HttpResponseBase)
            return response  # browsers ask this without saying who they are
        namespace = next(iter(self.handlers)) if event is None else event.details["namespace"]
        if namespace not in self.handlers:
            raise Http404(f"namespace {namespace!r} is not served any more")
        handler = self.handlers[namespace](**self.values)
        handler.endpoint = self
        handler.setup(request, *args, **kwargs)
        is_connect = event is not None and event.details["type"] == "connect"
        try:
            response = handler.dispatch(request, *args, **kwargs)
        except PermissionDenied as exc:
            if event is not None and not is_connect:
                raise
            roll_back()
            return refuse(Refusal.FORBIDDEN) if event is None else _keep_out(event, exc)
        if event is not None and event.answer is None and is_connect and 300 <= response.status_code < 500:
            return _keep_out(event, PermissionDenied())
        return response


def _keep_out(event: Event, refusal: Exception) -> HttpResponse:
    """Refuse a namespace whose handler was not reached, as `LoginRequiredMixin` has it; others may be open."""
    refuse_effect = Refuse(event.details["namespace"], error_of(refusal))
    event.answer = Answer(Outcome.DONE, (refuse_effect,), event.state)
    return HttpResponse(status=204)


def error_of(refusal: Exception) -> str:
    """Return what a client gets that is refused, as JSON."""
    match refusal:
        case ConnectionRefused(message=message, data=None):
            error = {"message": message}
        case ConnectionRefused(message=message, data=data):
            error = {"message": message, "data": data}
        case PermissionDenied():
            error = {"message": "Forbidden"}
        case _:
            error = {"message": "Not found"}
    return to_bytes(error).decode()
