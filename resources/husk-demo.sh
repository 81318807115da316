#!/bin/sh
# /usr/local/bin/husk-demo of the Debian image: shows that this machine works. rc.local runs it when
# husk.demo is on the kernel command line, and powers the machine off after it. husk.ip=ADDRESS/PREFIX
# and husk.gw=ADDRESS there give the network card an address and name the host.
word() { tr ' ' '\n' </proc/cmdline | sed -n "s/^$1=//p"; }
failed=0
check() { # check TITLE COMMAND…: shows a command and what it says
    title=$1
    shift
    echo "== $title: $*"
    "$@" || {
        echo "husk-demo: FAILED: $*"
        failed=1
    }
}

echo "HUSK-DEMO-BEGIN"
check system uname -a
check processors nproc
check memory free -m
check disk df -h /

file=/var/tmp/husk-demo.bin
head -c 4194304 /dev/urandom >$file
written=$(sha256sum <$file)
sync
echo 3 >/proc/sys/vm/drop_caches
echo "== file written and synced, 4 MiB: $written"
echo "== file read back from the disk:   $(sha256sum <$file)"
[ "$(sha256sum <$file)" = "$written" ] || { echo "husk-demo: FAILED: the file differs"; failed=1; }
rm -f $file

address=$(word husk.ip) gateway=$(word husk.gw)
if [ -n "$address" ]; then
    for card in /sys/class/net/*; do
        card=${card##*/}
        [ "$card" != lo ] && break
    done
    check network ip link set "$card" up
    check network ip address add "$address" dev "$card"
    check network ip -brief address
    check "the host" ping -c 3 -i 0.3 "$gateway"
fi

if [ $failed = 0 ]; then echo "HUSK-DEMO-PASSED"; else echo "HUSK-DEMO-FAILED"; fi
