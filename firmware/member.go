package firmware

import (
	"bufio"
	"compress/flate"
	"errors"
	"hash/crc32"
	"io"
)

// unpack writes m's content to w and compares it with m's size and CRC. It never
// writes more than the size, and does not read on when that is reached.
func (m *member) unpack(r io.ReaderAt, w io.Writer) error {
	packed := bufio.NewReaderSize(&fileReader{r: io.NewSectionReader(r, m.data, m.packed)}, 16<<10)
	var content io.Reader = packed
	if m.method == methodDeflate {
		content = flate.NewReader(packed)
	}
	crc := crc32.NewIEEE()
	out := &output{w: io.MultiWriter(crc, w)}
	n, err := io.CopyN(out, content, m.size)
	switch {
	case out.err != nil:
		return out.err
	case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
		return refuse(Malformed, "the archive's member %q ends after %d of %d bytes", m.name, n, m.size)
	case err != nil:
		return m.damage(err)
	}
	var one [1]byte
	switch n, err := io.ReadFull(content, one[:]); {
	case n > 0:
		return refuse(TooBig, "the archive's member %q unpacks to more than its %d bytes", m.name, m.size)
	case err != io.EOF:
		return m.damage(err)
	}
	if _, err := packed.ReadByte(); err != io.EOF {
		return refuse(Malformed, "the archive's member %q ends before its packed bytes do", m.name)
	}
	if crc.Sum32() != m.crc {
		return refuse(Malformed, "the archive's member %q has CRC %08x, its directory says %08x", m.name, crc.Sum32(), m.crc)
	}
	return nil
}

// damage tells a bad deflate stream from a file that cannot be read.
func (m *member) damage(err error) error {
	if broken, ok := errors.AsType[*readError](err); ok {
		return broken
	}
	return refuse(Malformed, "the archive's member %q cannot be unpacked: %v", m.name, err)
}

// begin returns the first n bytes of m's content, or fewer if it is shorter or
// damaged.
func (m *member) begin(r io.ReaderAt, n int) []byte {
	var content io.Reader = io.NewSectionReader(r, m.data, m.packed)
	if m.method == methodDeflate {
		content = flate.NewReader(content)
	}
	b := make([]byte, n)
	n, _ = io.ReadFull(content, b) // unpack tells what is wrong
	return b[:n]
}

// A fileReader marks the errors of the file, so that they are not taken for the
// archive's.
type fileReader struct{ r io.Reader }

func (f *fileReader) Read(b []byte) (int, error) {
	n, err := f.r.Read(b)
	if err != nil && err != io.EOF {
		err = &readError{err}
	}
	return n, err
}

type readError struct{ error }

func (e *readError) Error() string { return "read: " + e.error.Error() }
func (e *readError) Unwrap() error { return e.error }

// An output remembers that writing failed.
type output struct {
	w   io.Writer
	err error
}

func (o *output) Write(b []byte) (int, error) {
	n, err := o.w.Write(b)
	if err != nil {
		o.err = err
	}
	return n, err
}
