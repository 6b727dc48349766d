#!/bin/sh
# Sets up what udhcpc of a lab container was told.
case $1 in
deconfig)
	ip link set "$interface" up
	;;
bound | renew)
	ip addr replace "$ip/32" dev "$interface"
	ip route replace "$router" dev "$interface"
	ip route replace default via "$router" dev "$interface"
	echo "nameserver $dns" > /etc/resolv.conf
	;;
esac
