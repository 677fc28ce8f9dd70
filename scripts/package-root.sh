#!/usr/bin/env bash
# A command in another root, for scripts/package-test.sh, which calls this in a user and mount namespace of its own.
#
# usage: package-root.sh ROOT DATA COMMAND...     DATA is seen as /data; QEMU names an emulator for aarch64
set -euo pipefail
root=$1 data=$2
shift 2
if [ -n "${QEMU:-}" ]; then
  mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc || {
    echo "package-root: no binfmt_misc of one's own before Linux 6.7: install qemu-user-static with binfmt-support" >&2
    exit 1
  }
  # ELF of 64 bits for aarch64, programs and shared objects (System V ABI); F: opened now, since the root has none.
  magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  printf ':watus-aarch64:M::%s:%s:%s:F' "$magic" "$mask" "$QEMU" > /proc/sys/fs/binfmt_misc/register
fi
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --bind "$data" "$root/data"
unset QEMU
exec chroot "$root" env --chdir=/home/watus "$@"
