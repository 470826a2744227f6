#!/bin/sh
# Install Chromium and its driver, which the console's browser tests need. Does so only as root on Debian; elsewhere it
# prints what to install, and those tests fail until it is there.
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
    echo "Installing Chromium and chromedriver for the console's browser tests"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null
    exit 0
fi
echo "make test: the console's browser tests need Chromium (or Chrome) and chromedriver. Install them" \
    "(Debian: apt install chromium chromium-driver)." >&2
