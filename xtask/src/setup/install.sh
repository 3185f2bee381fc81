# Runs `apt-get install` and keeps the new daemons from starting, now and at the next boot: neither a test machine nor a
# developer asked for a container engine that changes the firewall.
# Arguments: the root folder (empty: this machine's), the services that the packages bring, and apt-get's arguments.
root=$1 services=$2
shift 2

# dpkg asks policy-rc.d before it starts a daemon. A file of the user's stays and decides.
policy=$root/usr/sbin/policy-rc.d
mark='# wsl-mirror: cargo xtask setup'
policy_is_ours=
new_units=
new_scripts=

# A unit or a link of the user's may lie in any of these folders.
has_unit() {
    for folder in lib usr/lib usr/local/lib run; do
        [ -e "$root/$folder/systemd/system/$1" ] && return
    done
    [ -d "$root/etc/systemd/system" ] && [ -n "$(find "$root/etc/systemd/system" -name "$1")" ]
}

# Also after a failure: dpkg may have configured some packages before it.
finish() {
    [ -z "$policy_is_ours" ] || rm -f "$policy"
    [ -d "$root/etc/systemd/system" ] && for unit in $new_units; do
        # The effect of `systemctl disable`, also without systemctl. deb-systemd-helper keeps these links.
        for target in "/lib/systemd/system/$unit" "/usr/lib/systemd/system/$unit"; do
            find "$root/etc/systemd/system" -type l -lname "$target" -delete
        done
    done
    for service in $new_scripts; do
        [ ! -e "$root/etc/init.d/$service" ] || update-rc.d "$service" disable
    done
}

for service in $services; do
    for unit in "$service.service" "$service.socket"; do
        has_unit "$unit" || new_units="$new_units $unit"
    done
    [ -e "$root/etc/init.d/$service" ] || new_scripts="$new_scripts $service"
done

trap finish EXIT
trap 'exit 130' HUP INT TERM
if [ -e "$policy" ] && ! grep -qxF "$mark" "$policy"; then
    echo "leaving $policy as it is"
else
    policy_is_ours=yes
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy"
    chmod 755 "$policy"
fi
apt-get install "$@"
