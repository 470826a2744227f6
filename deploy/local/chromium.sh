#!/bin/sh
# Chromium and its driver, for the test of the console's page. Installs them where that is one command of the system's
# own (root on Debian); elsewhere it says what to install, and the test itself fails until it is there.
set -eu

has_browser() {
    for name in chromium chromium-browser google-chrome google-chrome-stable; do
        if command -v "$name" >/dev/null 2>&1; then return 0; fi
    done
    return 1
}

if has_browser && command -v chromedriver >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 && grep -qs '^ID=debian' /etc/os-release; then
    echo "Installing Chromium and its driver for the test of the console's page"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null
    exit 0
fi
echo "make test: the console's page is tested in Chromium: install Chromium (or Chrome) and chromedriver" \
    "(Debian: apt install chromium chromium-driver)." >&2
