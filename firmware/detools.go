package firmware

import (
	"bufio"
	"fmt"
	"io"
	"math"
)

// patchReadError is err, met while reading what: a patch that ends there is a
// VerdictError, a reader that fails is not.
func patchReadError(what string, err error) error {
	if err == io.EOF {
		return refuse(Truncated, "it ends within %s", what)
	}
	return fmt.Errorf("firmware: patch: read %s: %w", what, err)
}

// patchKind is the first byte of a patch: type sequential (0) in the upper four
// bits, compression heatshrink (4) in the lower. NervesHub makes no other.
const patchKind = 0x04

// IsPatch reports whether a file that begins with head is a detools patch of the
// kind NervesHub makes for ESP-IDF images (which begin with E9). One byte decides.
func IsPatch(head []byte) bool {
	return len(head) > 0 && head[0] == patchKind
}

// patchChunk is how many bytes of an image are worked on at a time.
const patchChunk = 16 << 10

// ApplyPatch writes to w the new image that patch, a detools patch of type
// sequential with heatshrink compression, makes of the old one, and returns how
// many bytes it wrote: never more than limit. It reads old only within
// [0, oldSize) and patch to its end, and holds at most about 100 KiB whatever
// the patch declares.
//
// A fault of the patch is a *VerdictError; other errors are those of old, patch
// and w. After an error what was written is no image. Without an error it may
// still be a wrong one: a patch carries no digest of either image, so the result
// has to be verified like any other.
//
// The patch is
//
//	04           type sequential, compression heatshrink
//	size         of the new image
//	parameters   of heatshrink, 1 byte; everything after it is compressed
//	size         of a data format patch: 0
//	records      until the new image is complete:
//	  size n     then n bytes to add, modulo 256, to the old image at the cursor,
//	             which moves on by n
//	  size m     then m bytes to take as they are
//	  size       by which the cursor is moved, may be negative
func ApplyPatch(old io.ReaderAt, oldSize int64, patch io.Reader, w io.Writer, limit int64) (n int64, err error) {
	out := &countingWriter{w: w}
	p := patcher{old: old, oldSize: oldSize, out: bufio.NewWriterSize(out, patchChunk)}
	if err := p.header(bufio.NewReader(patch), limit); err != nil {
		return 0, err
	}
	// An encoder's every record covers at least one byte more of the new image,
	// written by it or by the next, except for the first.
	for records := int64(0); p.left > 0; records++ {
		if records > p.size {
			return out.n, refuse(Malformed, "it has more records than the new image has bytes")
		}
		if err := p.record(); err != nil {
			return out.n, err
		}
	}
	if err := p.in.end(); err == errTrailing {
		return out.n, refuse(Malformed, "it goes on after the new image is complete")
	} else if err != nil {
		return out.n, patchReadError("its end", err)
	}
	if err := p.out.Flush(); err != nil {
		return out.n, writeError(err)
	}
	return out.n, nil
}

// A patcher is one patch under way.
type patcher struct {
	in      *heatshrink
	old     io.ReaderAt
	oldSize int64
	cursor  int64 // in the old image, 0 … oldSize
	out     *bufio.Writer
	size    int64 // of the new image
	left    int64 // of the new image, still to be written

	diff, base [patchChunk]byte
}

// header reads everything before the first record.
func (p *patcher) header(in *bufio.Reader, limit int64) error {
	kind, err := in.ReadByte()
	if err != nil {
		return patchReadError("its first byte", err)
	}
	if kind != patchKind {
		return refuse(Unsupported, "its first byte is %02x, not %02x (sequential, heatshrink)", kind, patchKind)
	}
	p.size, err = readSize(in, "the new image's size")
	if err != nil {
		return err
	}
	switch {
	case p.size == 0:
		return refuse(Malformed, "the new image is empty")
	case p.size > limit:
		return refuse(TooBig, "the new image has %d bytes, allowed are %d", p.size, limit)
	}
	p.left = p.size
	params, err := in.ReadByte()
	if err != nil {
		return patchReadError("the heatshrink parameters", err)
	}
	if p.in, err = newHeatshrink(params, in); err != nil {
		return err
	}
	switch format, err := readSize(p.in, "the data format patch's size"); {
	case err != nil:
		return err
	case format != 0:
		return refuse(Unsupported, "it contains a data format patch")
	}
	return nil
}

// record carries out one record.
func (p *patcher) record() error {
	n, err := readSize(p.in, "the size of a difference")
	if err != nil {
		return err
	}
	if n > p.left {
		return refuse(Malformed, "a difference of %d bytes where the new image lacks %d", n, p.left)
	}
	if err := p.add(n); err != nil {
		return err
	}
	n, err = readSize(p.in, "the size of an insertion")
	if err != nil {
		return err
	}
	if n > p.left {
		return refuse(Malformed, "an insertion of %d bytes where the new image lacks %d", n, p.left)
	}
	if err := p.insert(n); err != nil {
		return err
	}
	by, err := readVarint(p.in, "a move of the cursor")
	if err != nil {
		return err
	}
	return p.move(by)
}

// add writes n bytes of the old image with the difference added.
func (p *patcher) add(n int64) error {
	if n > p.oldSize-p.cursor {
		return refuse(WrongBase, "it needs %d bytes at %d of the old image, which has %d", n, p.cursor, p.oldSize)
	}
	for n > 0 {
		k := int(min(n, patchChunk))
		diff, base := p.diff[:k], p.base[:k]
		if err := p.in.fill(diff); err != nil {
			return patchReadError("a difference", err)
		}
		// A ReaderAt may report the end of the file together with its last bytes.
		if got, err := p.old.ReadAt(base, p.cursor); got < k {
			return fmt.Errorf("firmware: patch: read old image at %d: %w", p.cursor, err)
		}
		for i, d := range diff {
			base[i] += d
		}
		if _, err := p.out.Write(base); err != nil {
			return writeError(err)
		}
		p.cursor, p.left, n = p.cursor+int64(k), p.left-int64(k), n-int64(k)
	}
	return nil
}

// insert writes n bytes of the patch as they are.
func (p *patcher) insert(n int64) error {
	for n > 0 {
		k := int(min(n, patchChunk))
		if err := p.in.fill(p.diff[:k]); err != nil {
			return patchReadError("an insertion", err)
		}
		if _, err := p.out.Write(p.diff[:k]); err != nil {
			return writeError(err)
		}
		p.left, n = p.left-int64(k), n-int64(k)
	}
	return nil
}

// move moves the cursor. bsdiff never leaves the old image, not even with the
// last move, which nothing depends on.
func (p *patcher) move(by int64) error {
	switch {
	case by < -p.cursor:
		return refuse(Malformed, "it moves from %d of the old image by %d, to before its beginning", p.cursor, by)
	case by > p.oldSize-p.cursor:
		return refuse(WrongBase, "it moves from %d of the old image by %d, past its end at %d", p.cursor, by, p.oldSize)
	}
	p.cursor += by
	return nil
}

// readSize reads a number that counts bytes; what names it.
func readSize(in io.ByteReader, what string) (int64, error) {
	n, err := readVarint(in, what)
	if err == nil && n < 0 {
		err = refuse(Malformed, "%s is %d", what, n)
	}
	return n, err
}

// readVarint reads a number of at most 63 bits; what names it. Bit 7 of each
// byte says that another follows; bit 6 of the first is the sign and its lower
// six bits are the lowest of the magnitude; the others add seven bits each.
func readVarint(in io.ByteReader, what string) (int64, error) {
	c, err := in.ReadByte()
	if err != nil {
		return 0, patchReadError(what, err)
	}
	negative := c&0x40 != 0
	n := int64(c & 0x3f)
	for shift := 6; c&0x80 != 0; shift += 7 {
		if c, err = in.ReadByte(); err != nil {
			return 0, patchReadError(what, err)
		}
		bits := int64(c & 0x7f)
		if shift > 62 || bits > math.MaxInt64>>shift {
			return 0, refuse(Malformed, "%s has more than 63 bits", what)
		}
		n |= bits << shift
	}
	if negative {
		n = -n
	}
	return n, nil
}

func writeError(err error) error {
	return fmt.Errorf("firmware: patch: write new image: %w", err)
}

// A countingWriter counts what w took.
type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
