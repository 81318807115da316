#!/bin/sh
# What busybox's acpid runs in a guest initramfs at the press of the power button. It has the log
# file as its output, so the console is named.
echo HUSK-POWER-BUTTON >/dev/console
sync
stty -F /dev/console sane
exec poweroff -f
