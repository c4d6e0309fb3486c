package foreign

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Tags and rights of an access control list, see acl(5) and linux/posix_acl_xattr.h.
const (
	aclVersion = 2
	aclOwner   = 0x01
	aclUser    = 0x02
	aclGroup   = 0x04
	aclMask    = 0x10
	aclOther   = 0x20
	aclAll     = 7
	aclPass    = 1
	aclNobody  = ^uint32(0) // id of the entries that name nobody
)

// Admit lets one user besides its owner pass through a folder, and nobody else: no
// other member of any group. The error is unix.ENOTSUP where the file system keeps no
// access control lists.
func Admit(dir string, uid uint32) error {
	list := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range []struct {
		tag, rights uint16
		id          uint32
	}{
		{aclOwner, aclAll, aclNobody},
		{aclUser, aclPass, uid},
		{aclGroup, 0, aclNobody},
		{aclMask, aclPass, aclNobody},
		{aclOther, 0, aclNobody},
	} {
		list = binary.LittleEndian.AppendUint16(list, e.tag)
		list = binary.LittleEndian.AppendUint16(list, e.rights)
		list = binary.LittleEndian.AppendUint32(list, e.id)
	}
	if err := unix.Lsetxattr(dir, "system.posix_acl_access", list, 0); err != nil {
		return fmt.Errorf("let a user pass: %w", &os.PathError{Op: "setxattr", Path: dir, Err: err})
	}
	return nil
}
