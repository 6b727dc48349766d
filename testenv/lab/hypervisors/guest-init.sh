#!/bin/sh
# First process of a lab guest. The kernel command line says what its NICs are:
#   nic0=MAC,ADDRESS,... route0=PREFIX,... gw4=ADDRESS gw6=ADDRESS
# It answers to ping, echoes on TCP port 7 and runs lines of shell on TCP port 8.
# Once a second it writes a dot to its console, to show that it runs.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
while read -r m; do insmod "/modules/$m.ko"; done < /modules/order
acpid -l /dev/null -c /etc/acpi

for word in $(cat /proc/cmdline); do
	case $word in
	gw4=*) gw4=${word#*=} ;;
	gw6=*) gw6=${word#*=} ;;
	esac
done
for f in all default; do
	echo 0 > /proc/sys/net/ipv6/conf/$f/accept_dad
	echo 0 > /proc/sys/net/ipv6/conf/$f/accept_ra
done
ip link set lo up

# The way out of NIC 0 is the default; of the others, what has their address as
# source goes out there.
nic() { # number, MAC, addresses
	n=$1
	mac=$2
	shift 2
	link=
	while [ -z "$link" ]; do
		for l in /sys/class/net/*; do
			[ "$(cat "$l/address")" = "$mac" ] && link=${l##*/}
		done
		[ "$link" ] || usleep 20000
	done
	echo 0 > "/proc/sys/net/ipv6/conf/$link/accept_dad"
	ip link set "$link" up
	for a in "$@"; do
		case $a in
		*:*) ip -6 addr add "$a/128" dev "$link" && family=-6 gw=$gw6 ;;
		*) ip addr add "$a/32" dev "$link" && family=-4 gw=$gw4 ;;
		esac
		table=main
		if [ "$n" != 0 ]; then
			table=$((100 + n))
			ip $family rule add from "$a" lookup $table
		fi
		[ "$gw" ] || continue
		ip $family route replace "$gw" dev "$link" table $table
		ip $family route replace default via "$gw" dev "$link" table $table
	done
}

for word in $(cat /proc/cmdline); do
	name=${word%%=*}
	values=$(echo "${word#*=}" | tr , ' ')
	case $name in
	nic[0-9]*) nic "${name#nic}" $values ;;
	route[0-9]*)
		for p in $values; do
			case $p in
			*:*) ip -6 route add local "$p" dev lo ;;
			*) ip route add local "$p" dev lo table local ;;
			esac
		done
		;;
	esac
done

nc -ll -p 7 -e /bin/cat &
nc -ll -p 8 -e /bin/obey &
ip addr
ip route
ip -6 route
echo "GUEST-READY $(cut -d' ' -f1 /proc/uptime)"
# A read that times out, and no sleep: that would be a process each time.
mkfifo /run/never
exec 3<>/run/never
while :; do
	read -r -t 1 _ <&3
	printf .
done
