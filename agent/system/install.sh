#!/bin/sh
# Installs edge-agent as a systemd service, or updates an installation. Run it as root.
#
#   install.sh [--from WHEEL] [--extras rt-onnx,rt-tflite,image] [--python python3] [--no-start]
#   install.sh --uninstall [--purge]
#
# It creates the user edge-agent, its own Python environment in /opt/edge-agent, the settings in
# /etc/edge-agent, the data folder /var/lib/edge-agent, the unit, and the command in /usr/local/bin.
# Existing settings and data are kept; --uninstall keeps them, too; --purge removes them.
set -eu

user=edge-agent
venv=/opt/edge-agent
settings=/etc/edge-agent
data=/var/lib/edge-agent
units=/etc/systemd/system
link=/usr/local/bin/edge-agent

from=edge-deploy # a wheel's path, or the name that pip finds
extras=rt-tflite,image
python=python3
start=yes
task=install
purge=no

fail() {
    echo "error: $1" >&2
    [ -z "${2:-}" ] || echo "  hint: $2" >&2
    exit 1
}

say() { echo "$1" >&2; }

systemd_runs() { [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }

parse() {
    while [ $# -gt 0 ]; do
        case $1 in
        --from | --extras | --python)
            [ $# -ge 2 ] || fail "$1 needs a value"
            case $1 in
            --from) from=$2 ;;
            --extras) extras=$2 ;;
            --python) python=$2 ;;
            esac
            shift
            ;;
        --no-start) start=no ;;
        --uninstall) task=uninstall ;;
        --purge) purge=yes ;;
        -h | --help)
            sed -n '2,9s/^# \{0,1\}//p' "$0"
            exit 0
            ;;
        *) fail "unknown option $1" "install.sh --help" ;;
        esac
        shift
    done
}

check() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "$python is not Python 3.10 or newer" "--python /usr/bin/python3.11"
    "$python" -c 'import ensurepip' 2>/dev/null ||
        fail "$python cannot make environments" "apt-get install python3-venv"
    case $from in
    *.whl | */*)
        [ -f "$from" ] || fail "no wheel at $from"
        from=$(realpath "$from")
        ;;
    esac
}

make_user() {
    getent passwd "$user" >/dev/null && return
    say "making the user $user"
    useradd --system --user-group --home-dir "$data" --no-create-home --shell /usr/sbin/nologin "$user"
}

make_environment() {
    say "installing $from with $extras into $venv"
    "$python" -m venv "$venv" # repeated, because Python may have been updated
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --upgrade "${from}[${extras}]"
    chmod -R go=rX "$venv"
    su -s /bin/sh "$user" -c "$venv/bin/python -c ''" 2>/dev/null ||
        fail "the user $user cannot run $python" "take one outside of home folders with --python"
    mkdir -p "${link%/*}"
    ln -sfn "$venv/bin/edge-agent" "$link"
}

make_folders() {
    install -d -m 0755 "$settings"
    install -d -m 0700 -o "$user" -g "$user" "$data"
    [ -e "$settings/config.toml" ] ||
        "$venv/bin/edge-agent" init --config "$settings/config.toml" --data-dir "$data" >&2
}

make_unit() {
    system=$("$venv/bin/python" -I -c 'import agent; print(agent.__path__[0] + "/system")')
    install -D -m 0644 "$system/edge-agent.service" "$units/edge-agent.service"
    version=$(systemctl --version 2>/dev/null | sed -n '1s/^systemd \([0-9]*\).*/\1/p')
    if [ "${version:-0}" -ge 254 ]; then # older versions have no back-off
        install -D -m 0644 "$system/back-off.conf" "$units/edge-agent.service.d/back-off.conf"
    fi
    if ! systemd_runs; then
        say "systemd does not run here: start it with 'edge-agent run'"
        return
    fi
    systemctl daemon-reload
    [ $start = no ] || { systemctl enable --quiet edge-agent && systemctl restart edge-agent; }
}

uninstall() {
    if systemd_runs; then
        systemctl disable --now --quiet edge-agent || say "it was not enabled"
    fi
    rm -rf "$venv" "$units/edge-agent.service" "$units/edge-agent.service.d" "$link"
    if systemd_runs; then systemctl daemon-reload; fi
    if [ $purge = no ]; then
        say "kept $settings, $data and the user $user; --purge removes them"
        return
    fi
    rm -rf "$settings" "$data"
    if getent passwd "$user" >/dev/null; then userdel "$user"; fi
}

parse "$@"
[ "$(id -u)" -eq 0 ] || fail "only root can do this" "sudo sh $0 $*"
if [ $task = uninstall ]; then
    uninstall
else
    check
    make_user
    make_environment
    make_folders
    make_unit
fi
say "done"
