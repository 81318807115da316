#!/bin/bash
# Stands for QEMU in the tests of the testbed, and is started with its options. Instead of a machine there are
# namespaces, in which the real testbed-enter.sh finds what it finds in the testbed. The file `plan` beside it
# has a line for each start, of which the first is taken:
#   work     run the command
#   silent   a heartbeat, and no sign of life after it
#   dead     not even that
#   gone     end at once
here=${0%/*}
plan=$(head -n 1 "$here/plan")
sed -i 1d "$here/plan"
[ "$plan" = gone ] && exit 1

while [ $# -gt 0 ]; do
    case "$1 $2" in
    "-fsdev local,id=job,"*) job=${2#*,path=} job=${job%%,multidevs=*} ;;
    "-chardev socket,id="*) id=${2#socket,id=} && declare "fd_${id%%,*}=${2##*,fd=}" ;;
    esac
    shift
done

if [ "$plan" != work ]; then
    [ "$plan" = silent ] && echo 1 >"$job/heartbeat"
    # Its monitor is as dead.
    eval "exec $fd_monitor>&-"
    exec sleep 600
fi

export job fd_out fd_err fd_in
[ "$EUID" = 0 ] || user=--map-root-user
# shellcheck disable=SC2016,SC2086
exec unshare $user --mount --pid --fork --kill-child bash -c '
    set -e
    mount -t tmpfs run /run
    mkdir -p /run/husk/job /run/dev
    mount --bind "$job" /run/husk/job
    cp "$(PATH=$PATH:/usr/sbin:/sbin command -v busybox)" /run/husk/busybox
    mount -t tmpfs sys /sys
    touch /run/dev/null
    mount --bind /dev/null /run/dev/null
    for port in out err in; do
        mkdir -p "/sys/class/virtio-ports/$port"
        echo "husk.$port" >"/sys/class/virtio-ports/$port/name"
        mkfifo "/run/dev/$port"
    done
    mount --rbind /run/dev /dev
    cat /dev/out >&"$fd_out" &
    cat /dev/err >&"$fd_err" &
    cat <&"$fd_in" >/dev/in &
    # As process 1, whose end is that of all.
    exec /run/husk/busybox sh /run/husk/job/enter
'
