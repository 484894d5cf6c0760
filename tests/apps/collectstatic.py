"""`collectstatic.py FOLDER`: Django's own command, with the files of its admin site."""

import sys

import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    INSTALLED_APPS=[
        "django.contrib.contenttypes",
        "django.contrib.auth",
        "django.contrib.staticfiles",
        "django.contrib.admin.apps.SimpleAdminConfig",
    ],
    STATIC_URL="/static/",
    STATIC_ROOT=sys.argv[1],
)
django.setup()
call_command("collectstatic", "--noinput")
