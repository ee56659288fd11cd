"""`{% load realtime %}`"""

from __future__ import annotations

from django import template
from django.template.context import Context

from django_realtime.clock import cursor

register = template.Library()


@register.simple_tag(takes_context=True)
def rt_cursor(context: Context) -> str:
    """Return the position from which this page's streams are to begin: `?last_event_id={% rt_cursor %}`.

    See `realtime.cursor`, which is also what Jinja's environment takes as a global.
    """
    return cursor(getattr(context, "request", None))
