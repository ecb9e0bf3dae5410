#!/bin/bash
# Fetches the newest kernel of a Debian release into a directory, once: boot/vmlinuz-VERSION and lib/modules/VERSION. The
# packages come from this machine's own mirror and are verified with Debian's keys, but nothing is installed and this
# machine's own lists of packages stay as they are.
#
# Usage: fetch.sh RELEASE DIRECTORY
set -euo pipefail
release=$1
directory=$2

[ ! -e "$directory/complete" ] || exit 0
rm -rf "$directory"
apt=$directory/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | sort -u | head -1)
if [ -z "$mirror" ]; then
    echo "fetch.sh: apt-get update must have read a Debian mirror once" >&2
    exit 1
fi
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [arch=amd64 signed-by=$keys] $mirror $release main" > "$apt/sources.list"
options=(
    -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=/dev/null" -o "Dir::Cache=$apt/cache"
    -o "Dir::Etc::sourcelist=$apt/sources.list" -o "Dir::Etc::sourceparts=-" -o Acquire::Languages=none
    -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false
)
echo "Reading the packages of Debian $release"
apt-get "${options[@]}" -qq update
package=$(apt-cache "${options[@]}" depends --important linux-image-amd64 |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
if [ -z "$package" ]; then
    echo "fetch.sh: Debian $release names no kernel" >&2
    exit 1
fi
echo "Fetching $package of Debian $release"
(cd "$directory" && apt-get "${options[@]}" -o Dpkg::Use-Pty=0 download "$package")
dpkg-deb --extract "$directory"/*.deb "$directory"
# Newer packages have everything below /usr.
[ -d "$directory/lib/modules" ] || ln -s usr/lib "$directory/lib"
version=$(basename "$directory"/lib/modules/*)
depmod --basedir "$directory" "$version"
rm -rf "$apt" "$directory"/*.deb
touch "$directory/complete"
