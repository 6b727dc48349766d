#!/bin/sh
# First process of a lab container. The environment says what its NICs are:
#   nic0=ADDRESS,... route0=PREFIX,... gw4=ADDRESS gw6=ADDRESS
# With dhcp=yes eth0 asks for its address instead.
# It answers to ping, echoes on TCP port 7 and runs lines of shell on TCP port 8.
trap 'exit 0' PWR TERM INT 37
/bin/busybox --install -s /bin
export PATH=/bin
ip link set lo up

words() { echo "$1" | tr , ' '; }

# The way out of NIC 0 is the default; of the others, what has their address as
# source goes out there.
nic() { # number, addresses
	n=$1
	shift
	echo 0 > "/proc/sys/net/ipv6/conf/eth$n/accept_dad"
	ip link set "eth$n" up
	for a in "$@"; do
		case $a in
		*:*) ip -6 addr add "$a/128" dev "eth$n" && family=-6 gw=$gw6 ;;
		*) ip addr add "$a/32" dev "eth$n" && family=-4 gw=$gw4 ;;
		esac
		table=main
		if [ "$n" != 0 ]; then
			table=$((100 + n))
			ip $family rule add from "$a" lookup $table
		fi
		[ "$gw" ] || continue
		ip $family route replace "$gw" dev "eth$n" table $table
		ip $family route replace default via "$gw" dev "eth$n" table $table
	done
}

i=0
while eval "addresses=\$nic$i routes=\$route$i" && [ "$addresses" ]; do
	nic $i $(words "$addresses")
	for p in $(words "$routes"); do
		case $p in
		*:*) ip -6 route add local "$p" dev lo ;;
		*) ip route add local "$p" dev lo table local ;;
		esac
	done
	i=$((i + 1))
done

[ -z "$dhcp" ] || udhcpc -i eth0 -b -t 1000 -s /bin/lease

nc -ll -p 7 -e /bin/cat &
nc -ll -p 8 -e /bin/obey &
# In /dev, which LXC makes anew for each start.
echo ready > /dev/ready
while :; do
	sleep 3600 &
	wait $!
done
