# Runs one command in the testbed, as process 1 with the host's root file system already in place.
# The directory /run/husk/job is shared with xtask outside, which fills it in job.rs:
#   command    what to run, a shell script that ends in exec          (read)
#   tty        present: on a terminal, which is /dev/hvc0             (read)
#   end        the words that end each output stream, see stream.rs   (read)
#   winsize    "ROWS COLUMNS" of the terminal outside                 (read, may change)
#   heartbeat  a number that grows every second                       (written)
#   status     the command's exit status                              (written, last of all)
# The command's streams are virtio-serial ports of their own; nothing else is ever written there.
job=/run/husk/job
b=/run/husk/busybox

(
    beat=0 size=
    while :; do
        beat=$((beat + 1))
        echo $beat >$job/heartbeat
        if [ -e $job/tty ]; then
            new=$($b cat $job/winsize 2>/dev/null)
            if [ "$new" != "$size" ] && [ -e /dev/hvc0 ]; then
                size=$new
                # shellcheck disable=SC2086
                set -- $size
                $b stty -F /dev/hvc0 rows "$1" cols "$2"
            fi
        fi
        $b sleep 1
    done
) &

# port NAME: waits for the virtio-serial port of that name and prints its device.
port() {
    while :; do
        for p in /sys/class/virtio-ports/*; do
            if [ "$($b cat "$p/name" 2>/dev/null)" = "$1" ]; then
                device=/dev/${p##*/}
                [ -e "$device" ] && echo "$device" && return
            fi
        done
        $b usleep 20000
    done
}

end=$($b cat $job/end)
if [ -e $job/tty ]; then
    while [ ! -e /dev/hvc0 ]; do $b usleep 20000; done
    size=$($b cat $job/winsize)
    # shellcheck disable=SC2086
    set -- $size
    exec 4<>/dev/hvc0 5>/dev/null # held open: the last close forgets the size
    $b stty -F /dev/hvc0 sane rows "$1" cols "$2"
    # Never in the background: that would make it deaf to Ctrl-C.
    $b setsid -c $b sh $job/command <&4 >&4 2>&4 4<&- 5>&-
    status=$?
    exec 4>/dev/hvc0 # the end of the command's session has hung up the one before
else
    out=$(port husk.out) err=$(port husk.err) in=$(port husk.in)
    exec 3<"$in" 4>"$out" 5>"$err"
    $b sh $job/command <&3 >&4 2>&5 3<&- 4>&- 5>&-
    status=$?
fi

echo $status >$job/status.new
$b mv $job/status.new $job/status
$b sync
printf '%s' "$end" >&4
printf '%s' "$end" >&5
# xtask ends this machine when both streams have ended. Should it not, this does.
$b sleep 30
$b poweroff -f
