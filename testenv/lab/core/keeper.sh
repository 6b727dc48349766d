# The keeper of the lab in the directory $1. It waits until descriptor 3 ends, which
# it does with the owner of the lab, however that dies, and then removes what is
# left, by the record in the directory (record.go): the lab's processes, its
# namespaces, its files. What is gone already is no error, so that it can be run
# again, also by two at a time.

dir=$1 record=$1/record
# Whoever ends owner and keeper together by signal lets the keeper do its work;
# SIGKILL leaves it to a sweep.
trap '' HUP INT QUIT TERM PIPE
while read -r _ <&3; do :; done
exec 3<&-
[ -e "$record" ] || exit 0

nl='
'
owner= boot= netns= namespaces= processes= trees=
while read -r kind what; do
	case $kind in
	owner) owner=${what% *} ;;
	boot) boot=$what ;;
	netns) netns=$what ;;
	namespace) namespaces=$namespaces$what$nl ;;
	process) processes=$processes$what$nl ;;
	tree) trees=$trees$what$nl ;;
	esac
done <"$record"
# Numbers of processes mean something within one boot only.
read -r now </proc/sys/kernel/random/boot_id
[ "$now" = "$boot" ] || processes=
IFS=$nl
set -f

# runs tells whether the process "PID START" still runs: field 22 of
# proc_pid_stat(5) is its start, field 3 its state. The second field, in
# parentheses, can hold spaces and parentheses.
runs() {
	{ read -r stat <"/proc/${1% *}/stat"; } 2>/dev/null || return 1
	start=${1#* }
	IFS=' '
	set -- 1 2 ${stat##*) }
	IFS=$nl
	[ "$3" != Z ] && [ "$3" != X ] && [ "${22}" = "$start" ]
}

# look sets left to the numbers of the lab's processes that run.
look() {
	left=
	for process in $processes; do
		if runs "$process"; then left=$left${process% *}$nl; fi
	done
	set +f
	set -- /proc/[0-9]*
	set -f
	for proc; do
		[ "$proc/ns/net" -ef /proc/self/ns/net ] && continue
		for namespace in $namespaces; do
			if [ "$proc/ns/net" -ef "$namespace" ] && [ "$proc" != "/proc/$owner" ]; then
				left=$left${proc#/proc/}$nl
				break
			fi
		done
	done
}

# Killing is repeated for those that fork meanwhile.
tries=0
look
while [ -n "$left" ]; do
	if [ "$tries" -ge 1000 ]; then
		pid=${left%%"$nl"*}
		echo "process $pid did not end within 10 s of being killed; see what it waits for in /proc/$pid/stack" >&2
		exit 1 # the record stays, for a later try
	fi
	kill -9 $left 2>/dev/null
	sleep 0.01 2>/dev/null || { sleep 1; tries=$((tries + 99)); }
	tries=$((tries + 1))
	look
done

# What is not mounted, or where this process cannot reach it, is no error yet: the
# removal of the names decides.
umount -l -- $namespaces 2>/dev/null
rm -f -- $namespaces || exit 1
for tree in $trees; do
	# The files of a control group cannot be removed, and go with its directory.
	rm -rf -- "$tree" 2>/dev/null || find "$tree" -depth -type d -exec rmdir {} \; || exit 1
	[ ! -e "$tree" ] || exit 1
done
# While other labs use the directory this fails; that of the system stays a mount,
# as ip-netns(8) leaves it.
case $netns in
/run/netns) ;;
*) umount -- "$netns" 2>/dev/null ;;
esac
rm -rf -- "$dir" || exit 1
rmdir -- "${dir%/*}" 2>/dev/null # not with a lab in it
exit 0
