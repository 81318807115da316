#!/bin/sh
# Turns a fresh minimal Debian into husk's demo guest. mmdebstrap runs this outside the new root
# (its path is the argument) with husk-demo.sh beside it; see xtask/src/assets/debian.rs.
set -e
root=$1
here=$(dirname "$0")

echo husk >"$root/etc/hostname"
printf '127.0.0.1 localhost husk\n::1 localhost\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 defaults,errors=remount-ro 0 1\n' >"$root/etc/fstab"
ln -sf /proc/mounts "$root/etc/mtab"

# root logs in without a password, and on the serial console only.
chroot "$root" passwd --quiet --delete root
sed -i '/getty.*tty[1-6]$/d' "$root/etc/inittab"
echo 'S0:2345:respawn:/sbin/getty -L 115200 ttyS0 vt100' >>"$root/etc/inittab"

# The power button turns the machine off.
mkdir -p "$root/etc/acpi/events"
printf 'event=button[ /]power\naction=/sbin/poweroff\n' >"$root/etc/acpi/events/powerbtn"

install -m 755 "$here/husk-demo.sh" "$root/usr/local/bin/husk-demo"
cat >"$root/etc/rc.local" <<'END'
#!/bin/sh
ip link set lo up
# The demo, when husk.demo is on the kernel command line.
if tr ' ' '\n' </proc/cmdline | grep -qx husk.demo; then
    /usr/local/bin/husk-demo </dev/console >/dev/console 2>&1
    poweroff
fi
exit 0
END
chmod 755 "$root/etc/rc.local"

# Nothing of the machine this is made on.
rm -f "$root/etc/resolv.conf" "$root"/var/log/*.log
: >"$root/etc/machine-id"
