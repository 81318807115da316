#!/bin/busybox sh
# /init of the testbed's outer machine (an initramfs made by xtask/src/testbed/image.rs).
# Loads the modules named in /modules.order, makes the host's root file system this machine's root
# (read-only over 9p, under an overlay in RAM), mounts what a root needs, and goes on there with
# testbed-enter.sh. Its words go to the serial console, which xtask shows when something is wrong.
export PATH=/bin
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin

die() { echo "testbed-init: $*"; poweroff -f; }

while read -r module; do
    insmod "/lib/$module" || echo "testbed-init: $module did not load"
done </modules.order

mkdir /host /ram /new
share="trans=virtio,version=9p2000.L,msize=512000"
mount -t 9p -o "ro,cache=loose,$share" host /host || die "no 9p share of the host's root"
mount -t tmpfs -o size=90% ram /ram
mkdir /ram/upper /ram/work
mount -t overlay -o lowerdir=/host,upperdir=/ram/upper,workdir=/ram/work root /new ||
    die "no overlay over the host's root"

mkdir -p /new/proc /new/sys /new/dev /new/run
mount -t tmpfs -o mode=755 run /new/run
mkdir -p /new/run/husk/job
mount -t 9p -o "cache=none,$share" job /new/run/husk/job || die "no 9p share for the job"
cp /bin/busybox /new/run/husk/busybox

results=$(cat /new/run/husk/job/results)
mkdir -p "/new$results"
mount -t 9p -o "cache=mmap,$share" results "/new$results" || die "no 9p share for results"

mount -t proc proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
chmod 666 /new/dev/kvm # as distributions have it
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs -o mode=1777 shm /new/dev/shm
mount -t cgroup2 cgroup2 /new/sys/fs/cgroup
mount -t tracefs tracefs /new/sys/kernel/tracing || echo "testbed-init: no tracing"
ln -sf /proc/self/fd /new/dev/fd
ln -sf /proc/self/fd/0 /new/dev/stdin
ln -sf /proc/self/fd/1 /new/dev/stdout
ln -sf /proc/self/fd/2 /new/dev/stderr
ifconfig lo 127.0.0.1 up
hostname testbed

exec switch_root /new /run/husk/busybox sh /run/husk/job/enter
