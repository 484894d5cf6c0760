"""Django in one file behind uwsgi, the same pages as flaskapp.py."""

import hashlib

from cues import cues
from django.conf import settings

settings.configure(
    DEBUG=False,
    SECRET_KEY="only for tests",
    ROOT_URLCONF=__name__,
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=[],
    DATA_UPLOAD_MAX_MEMORY_SIZE=None,
    SECURE_PROXY_SSL_HEADER=("HTTP_X_FORWARDED_PROTO", "https"),
)

from django.core.wsgi import get_wsgi_application  # noqa: E402 (Django wants its settings first)
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

BLOCK = bytes(range(256)) * 256


def hello(request):
    return HttpResponse(f"hello {request.GET.get('name', 'world')}")


def form(request):
    return JsonResponse(request.POST.dict())


def file(request):
    content = request.FILES["file"].read()
    return JsonResponse(
        {
            "name": request.FILES["file"].name,
            "text": request.POST["text"],
            "length": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    )


def upload(request):
    digest, length = hashlib.sha256(), 0
    while piece := request.read(65536):
        digest.update(piece)
        length += len(piece)
    return JsonResponse({"length": length, "sha256": digest.hexdigest()})


def download(request, size):
    blocks = (BLOCK[: min(len(BLOCK), size - at)] for at in range(0, size, len(BLOCK)))
    return StreamingHttpResponse(blocks, content_type="application/octet-stream")


def stream(request, count):
    lines = (f"line {number}\n" for number in range(count))
    return StreamingHttpResponse(lines, content_type="text/plain", headers={"X-Accel-Buffering": "no"})


def events(request):
    lines = (f"data: {cue}\n\n" for cue in cues(int(request.GET["cue"])))
    return StreamingHttpResponse(lines, content_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


def refuse(request):
    return HttpResponse("this is too large\n", status=413)


def raise_(request):
    raise RuntimeError("on purpose")


def who(request):
    return JsonResponse({"url": request.build_absolute_uri(), "remote": request.META["REMOTE_ADDR"]})


urlpatterns = [
    path("", hello),
    path("form", form),
    path("file", file),
    path("upload", upload),
    path("download/<int:size>", download),
    path("stream/<int:count>", stream),
    path("events", events),
    path("refuse", refuse),
    path("raise", raise_),
    path("who", who),
]

application = get_wsgi_application()
