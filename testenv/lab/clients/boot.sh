# Makes a guest's root out of the one in $1, in the directory $2, and becomes the guest's
# first process, which runs the script $3 and then waits. Nothing outside is changed.
set -e
mount --make-rprivate /
mount -t tmpfs box "$2"
mkdir "$2/upper" "$2/work" "$2/root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" root "$2/root"
cd "$2/root"
mount -t proc proc proc
# Read-only, as in a container: else networkd waits for udev, which is not there.
mount -t sysfs -o ro sysfs sys
mount -t tmpfs run run
mount -t tmpfs tmp tmp
# None of the machine's disks and consoles: cloud-init resizes file systems.
mount -t tmpfs -o mode=755 dev dev
mkdir dev/shm
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
	minor=${node##*:} rest=${node%:*}
	mknod -m 666 "dev/${rest%:*}" c "${rest#*:}" "$minor"
done
ln -s /proc/self/fd dev/fd
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
rm -f etc/resolv.conf etc/network/interfaces
: >etc/resolv.conf
mkdir -p run/network
# What the machine's own clients left.
rm -rf var/lib/dhcp/* var/lib/NetworkManager/* var/lib/cloud etc/netplan/* etc/NetworkManager/system-connections/* etc/systemd/network/*
hostname guest
exec chroot . /bin/sh -c "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin; $3
while :; do sleep 1000 & wait \$!; done"
