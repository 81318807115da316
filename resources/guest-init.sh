#!/bin/busybox sh
# /init of the guest initramfs images. What it does is said by words on the kernel command line and
# described in resources/README.md; keep the two together.
echo HUSK-INIT-READY
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TERM=${TERM:-linux}
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox --install -s /bin
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts

# Gives the value of a command line word; "in double quotes" it may hold blanks.
cmdline=" $(cat /proc/cmdline) "
word() {
    case $cmdline in
    *" $1=\""*) value=${cmdline#*" $1=\""} && echo "${value%%\"*}" ;;
    *" $1="*) value=${cmdline#*" $1="} && echo "${value%% *}" ;;
    esac
}

# Ends the machine in the way that is its argument. The console is drained first: what the serial
# driver still holds at power-off is lost.
finish() {
    sync
    stty -F /dev/console sane
    case $1 in
    reboot) reboot -f ;;
    halt) halt -f ;;
    panic) echo c >/proc/sysrq-trigger ;;
    hang) while :; do sleep 1000; done ;;
    *) poweroff -f ;;
    esac
    sleep 1000 # it takes effect when it does; process 1 must not end before
}

if [ -e /lib/modules.order ]; then
    while read -r module; do
        insmod "/lib/$module" || echo "husk-init: $module did not load"
    done </lib/modules.order
fi

script=
[ -e /test.sh ] && script=$(cat /test.sh)
code=$(word husk.cmd64) && [ -n "$code" ] && script=$(echo "$code" | base64 -d)
code=$(word husk.cmd) && [ -n "$code" ] && script=$code
if [ -n "$script" ]; then
    ifconfig lo 127.0.0.1 up
    sh -c "$script"
    echo "HUSK-EXIT $?"
    finish "$(word husk.end)"
fi

root=$(word root)
if [ -n "$root" ]; then
    tries=0
    while [ ! -e "$root" ] && [ $tries -lt 100 ]; do
        tries=$((tries + 1))
        usleep 100000
    done
    how=ro
    case $cmdline in *" rw "*) how=rw ;; esac
    if mount -t "$(word rootfstype | grep . || echo ext4)" -o "$how" "$root" /mnt; then
        init=$(word init)
        mount --move /dev /mnt/dev
        umount /proc /sys 2>/dev/null
        exec switch_root /mnt "${init:-/sbin/init}"
    fi
    echo "husk-init: cannot mount $root as the root file system"
fi

echo "husk-init: no husk.cmd= and no root= on the command line: a shell; it powers off at its end"
setsid -c sh </dev/console >/dev/console 2>&1
finish "$(word husk.end)"
