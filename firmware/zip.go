package firmware

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"unicode/utf8"
)

// A ZIP archive is read twice by different readers: fwup streams it from the
// front, most others begin with the directory at the end. An archive in which
// the two do not see the same is a forgery, so that nothing may be anywhere but
// where both look: the members from the first byte on without gaps, in the
// order of the directory, then the directory, then the end record and nothing
// behind it. (APPNOTE.TXT 4.3; archive/zip takes more, and cannot be told how
// large a directory may be.) All integers are little-endian.
const (
	localSig      = "PK\x03\x04"
	descriptorSig = "PK\x07\x08"
	centralSig    = "PK\x01\x02"
	endSig        = "PK\x05\x06"
	end64Sig      = "PK\x06\x06"
	locator64Sig  = "PK\x06\x07"

	localSize     = 30
	centralSize   = 46
	endSize       = 22
	end64Size     = 56
	locator64Size = 20

	flagEncrypted  = 1 << 0
	flagDescriptor = 1 << 3 // sizes and CRC follow the content

	methodStored  = 0
	methodDeflate = 8
)

// directoryMax bounds the directory, in bytes; nameMax one name.
const (
	directoryMax = 1 << 20
	nameMax      = 255
)

// A member is a file in an archive, as the directory has it.
type member struct {
	name          string
	method, flags uint16
	crc           uint32
	packed, size  int64
	header, data  int64 // offsets
}

// A directory is what the end record says.
type directory struct{ entries, size, at uint64 }

// readArchive returns the members in their order.
func readArchive(r io.ReaderAt, size int64, limit int) ([]member, error) {
	d, err := readEnd(r, size)
	switch {
	case err != nil:
		return nil, err
	case d.entries == 0:
		return nil, refuse(Malformed, "the archive is empty")
	case d.entries > uint64(limit):
		return nil, refuse(TooBig, "the archive has %d members, at most %d are allowed", d.entries, limit)
	case d.size > directoryMax:
		return nil, refuse(TooBig, "the archive's directory has %d bytes, at most %d are allowed", d.size, directoryMax)
	}
	b := make([]byte, d.size)
	if err := readAt(r, b, int64(d.at)); err != nil {
		return nil, err
	}
	members := make([]member, d.entries)
	known := map[string]bool{}
	for i := range members {
		m := &members[i]
		if b, err = m.readCentral(b); err != nil {
			return nil, err
		}
		if err := m.checkName(); err != nil {
			return nil, err
		}
		if known[m.name] {
			return nil, refuse(Malformed, "the archive has two members %q", m.name)
		}
		known[m.name] = true
	}
	if len(b) > 0 {
		return nil, refuse(Malformed, "the archive's directory has %d bytes more than its %d entries", len(b), d.entries)
	}
	for i := range members {
		next := int64(d.at)
		if i+1 < len(members) {
			next = members[i+1].header
		}
		if i == 0 && members[0].header != 0 {
			return nil, refuse(Malformed, "the archive's first member begins at %d: something precedes it", members[0].header)
		}
		if err := members[i].readLocal(r, next); err != nil {
			return nil, err
		}
	}
	return members, nil
}

// readEnd reads the end record, and the ZIP64 one before it if there is one.
func readEnd(r io.ReaderAt, size int64) (directory, error) {
	tail := make([]byte, min(size, endSize+1<<16)) // the record's comment is not longer
	if err := readAt(r, tail, size-int64(len(tail))); err != nil {
		return directory{}, err
	}
	last := len(tail) - endSize
	if last < 0 || string(tail[last:][:4]) != endSig {
		last = bytes.LastIndex(tail, []byte(endSig))
	}
	if last < 0 || len(tail)-last < endSize {
		return directory{}, refuse(Truncated, "the archive has no end record")
	}
	if after := len(tail) - last - endSize; after > 0 {
		return directory{}, refuse(Malformed, "%d bytes follow the archive's end record", after)
	}
	b := tail[last:]
	le := binary.LittleEndian
	disks, total := le.Uint32(b[4:]), le.Uint16(b[8:])
	d := directory{entries: uint64(le.Uint16(b[10:])), size: uint64(le.Uint32(b[12:])), at: uint64(le.Uint32(b[16:]))}
	if disks != 0 || uint64(total) != d.entries || le.Uint16(b[20:]) != 0 {
		return directory{}, refuse(Malformed, "the archive's end record speaks of several volumes or of a comment")
	}
	end := uint64(size - endSize)
	if last >= end64Size+locator64Size && string(tail[last-locator64Size:][:4]) == locator64Sig {
		end -= end64Size + locator64Size
		if err := d.widen(tail[last-end64Size-locator64Size:last], end); err != nil {
			return directory{}, err
		}
	}
	if d.at > end || d.size != end-d.at {
		return directory{}, refuse(Malformed, "the archive's directory should be the %d bytes at %d, and end at %d", d.size, d.at, end)
	}
	return d, nil
}

// widen takes the wider numbers of a ZIP64 end record at offset at. What fits
// in the narrow ones must be the same.
func (d *directory) widen(b []byte, at uint64) error {
	le := binary.LittleEndian
	locator := b[end64Size:]
	if string(b[:4]) != end64Sig || le.Uint64(b[4:]) != end64Size-12 || le.Uint64(b[16:]) != 0 ||
		le.Uint32(locator[4:]) != 0 || le.Uint64(locator[8:]) != at || le.Uint32(locator[16:]) > 1 {
		return refuse(Malformed, "the archive's ZIP64 end record is damaged")
	}
	wide := directory{entries: le.Uint64(b[32:]), size: le.Uint64(b[40:]), at: le.Uint64(b[48:])}
	same := func(narrow, wide, none uint64) bool { return narrow == none || narrow == wide }
	if le.Uint64(b[24:]) != wide.entries || !same(d.entries, wide.entries, 1<<16-1) ||
		!same(d.size, wide.size, 1<<32-1) || !same(d.at, wide.at, 1<<32-1) {
		return refuse(Malformed, "the archive's two end records differ")
	}
	*d = wide
	return nil
}

// readCentral reads m's entry at the start of b and returns what follows it.
func (m *member) readCentral(b []byte) (rest []byte, err error) {
	le := binary.LittleEndian
	if len(b) < centralSize || string(b[:4]) != centralSig {
		return nil, refuse(Malformed, "the archive's directory is damaged")
	}
	name, extra, comment := int(le.Uint16(b[28:])), int(le.Uint16(b[30:])), int(le.Uint16(b[32:]))
	if len(b) < centralSize+name+extra+comment {
		return nil, refuse(Malformed, "the archive's directory is damaged")
	}
	m.flags, m.method, m.crc = le.Uint16(b[8:]), le.Uint16(b[10:]), le.Uint32(b[16:])
	m.name = string(b[centralSize:][:name])
	fields := []uint64{uint64(le.Uint32(b[24:])), uint64(le.Uint32(b[20:])), uint64(le.Uint32(b[42:]))}
	if !widenFields(fields, b[centralSize+name:][:extra]) {
		return nil, refuse(Malformed, "the sizes of the archive's member %q are missing", m.name)
	}
	for _, f := range fields {
		if f > 1<<62 {
			return nil, refuse(Malformed, "the sizes of the archive's member %q are impossible", m.name)
		}
	}
	m.size, m.packed, m.header = int64(fields[0]), int64(fields[1]), int64(fields[2])
	switch {
	case m.flags&flagEncrypted != 0:
		return nil, refuse(Unsupported, "the archive's member %q is encrypted", m.name)
	case m.method != methodStored && m.method != methodDeflate:
		return nil, refuse(Unsupported, "the archive's member %q is packed by method %d, neither stored nor deflated", m.name, m.method)
	case m.method == methodStored && m.size != m.packed:
		return nil, refuse(Malformed, "the archive's member %q is stored, and has two sizes", m.name)
	}
	return b[centralSize+name+extra+comment:], nil
}

// widenFields replaces those fields that are all ones by the values of the
// ZIP64 extra field, which has just these, in the same order.
func widenFields(fields []uint64, extra []byte) bool {
	le := binary.LittleEndian
	var wide []byte
	for len(extra) >= 4 {
		id, n := le.Uint16(extra), int(le.Uint16(extra[2:]))
		if n > len(extra)-4 {
			return false
		}
		if id == 1 {
			wide = extra[4:][:n]
			break
		}
		extra = extra[4+n:]
	}
	for i, f := range fields {
		if f != 1<<32-1 {
			continue
		}
		if len(wide) < 8 {
			return false
		}
		fields[i], wide = le.Uint64(wide), wide[8:]
	}
	return true
}

// checkName refuses names that some reader could take for a place outside.
func (m *member) checkName() error {
	if m.name == "" || len(m.name) > nameMax || !utf8.ValidString(m.name) || !printable(m.name) {
		return refuse(UnsafePath, "the archive has a member named %.64q", m.name)
	}
	if strings.ContainsAny(m.name, `\:`) {
		return refuse(UnsafePath, "the archive's member %q has a name that is a path on some systems", m.name)
	}
	for part := range strings.SplitSeq(m.name, "/") {
		if part == "" || part == "." || part == ".." {
			return refuse(UnsafePath, "the archive's member %q is not a plain path", m.name)
		}
	}
	return nil
}

// readLocal compares m with its own header in front of its content, and its end
// with where the next thing begins.
func (m *member) readLocal(r io.ReaderAt, next int64) error {
	le := binary.LittleEndian
	if m.header > next-localSize {
		return refuse(Malformed, "the archive's members overlap at %q", m.name)
	}
	var b [localSize]byte
	if err := readAt(r, b[:], m.header); err != nil {
		return err
	}
	nameLen, extraLen := int(le.Uint16(b[26:])), int(le.Uint16(b[28:]))
	m.data = m.header + localSize + int64(nameLen) + int64(extraLen)
	if string(b[:4]) != localSig || nameLen != len(m.name) || m.data > next || m.packed > next-m.data {
		return refuse(Malformed, "the archive's member %q is not where its directory says", m.name)
	}
	more := make([]byte, nameLen+extraLen)
	if err := readAt(r, more, m.header+localSize); err != nil {
		return err
	}
	sizes := []uint64{uint64(le.Uint32(b[22:])), uint64(le.Uint32(b[18:]))}
	wide := widenFields(sizes, more[nameLen:])
	// With a descriptor the sizes are zero here; fwup writes the unpacked one.
	same := func(local uint64, size int64) bool {
		return local == uint64(size) || local == 0 && m.flags&flagDescriptor != 0
	}
	switch {
	case string(more[:nameLen]) != m.name, le.Uint16(b[6:]) != m.flags, le.Uint16(b[8:]) != m.method,
		!wide, !same(sizes[0], m.size), !same(sizes[1], m.packed):
		return refuse(Malformed, "the archive's member %q differs from its directory", m.name)
	}
	return m.readDescriptor(r, next)
}

// readDescriptor reads what is between the content and next: a data descriptor
// when the flags say so, else nothing.
func (m *member) readDescriptor(r io.ReaderAt, next int64) error {
	gap := next - m.data - m.packed
	if m.flags&flagDescriptor == 0 && gap == 0 {
		return nil
	}
	// With or without a signature, sizes of four or of eight bytes.
	if m.flags&flagDescriptor == 0 || gap != 12 && gap != 16 && gap != 20 && gap != 24 {
		return refuse(Malformed, "%d bytes follow the archive's member %q", gap, m.name)
	}
	b := make([]byte, gap)
	if err := readAt(r, b, next-gap); err != nil {
		return err
	}
	if gap%8 == 0 {
		if string(b[:4]) != descriptorSig {
			return refuse(Malformed, "%d bytes follow the archive's member %q", gap, m.name)
		}
		b = b[4:]
	}
	if binary.LittleEndian.Uint32(b) != m.crc {
		return refuse(Malformed, "the archive's member %q differs from its directory", m.name)
	}
	return nil
}
