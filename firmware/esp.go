package firmware

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// The ESP-IDF application image (esp_image_format.h, esp_app_desc.h). All
// integers are little-endian.
const (
	espMagic       = 0xe9
	espHeaderSize  = 24
	espSegmentMax  = 16  // ESP_IMAGE_MAX_SEGMENTS
	espLeast       = 288 // header, first segment's header, descriptor: what NervesHub asks for
	espDescriptor  = 32  // offset of esp_app_desc_t, the first thing in the first segment
	espChecksum    = 0xef
	espAlign       = 16 // the checksum is the last byte of such a block
	espSector      = 4096
	espDescMagic   = 0xabcd5432
	espChipUnknown = "unknown"
)

// chips are the platform and architecture NervesHub derives from the chip id in
// the header.
var chips = map[uint16][2]string{
	0x0000: {"esp32", "xtensa"},
	0x0002: {"esp32s2", "xtensa"},
	0x0005: {"esp32c3", "riscv"},
	0x0009: {"esp32s3", "xtensa"},
	0x000c: {"esp32c2", "riscv"},
	0x000d: {"esp32c6", "riscv"},
	0x0010: {"esp32h2", "riscv"},
	0x0012: {"esp32p4", "riscv"},
	0x0017: {"esp32c5", "riscv"},
}

// chip names any chip id as NervesHub does.
func chip(id uint16) (platform, architecture string) {
	if known, ok := chips[id]; ok {
		return known[0], known[1]
	}
	return fmt.Sprintf("esp32-%d", id), espChipUnknown
}

// inspectESP judges an application image. Faults of the image are told before
// faults of its signature.
func inspectESP(img *Image, r io.ReaderAt, size int64, keys Keys) error {
	if size < espLeast {
		return refuse(Truncated, "the image has %d bytes; header and app descriptor alone need %d", size, espLeast)
	}
	signed, unsound := secureBoot(img, r, size, keys)
	if v, judged := unsound.(*VerdictError); judged {
		img.Signature = v.Verdict
	} else if unsound != nil {
		return unsound
	}
	var head [espLeast]byte
	if err := readAt(r, head[:], 0); err != nil {
		return err
	}
	version, err := readDescriptor(img, head[:])
	if err != nil {
		return err
	}
	end, err := espSegments(r, size, head[1])
	if err != nil {
		return err
	}
	if end, err = espHash(r, size, end, head[23]); err != nil {
		return err
	}
	if signed && end > size-espSector { // the last sector is the image's own
		signed, unsound, img.Signature, img.Key = false, nil, Unsigned, ""
	}
	if err := espPadding(r, end, size, signed); err != nil {
		return err
	}
	if unsound != nil {
		return unsound
	}
	var normal bool
	if img.Version, normal = NormaliseVersion(version); !normal {
		img.Version = version
		return refuse(BadVersion, "the app descriptor's version is %q, which no rule makes a semantic version", version)
	}
	whole := &wholeFile{r: r, size: size}
	if err := img.add(Whole, size, whole); err != nil {
		return err
	}
	whole.want = img.Resources[0].SHA256
	return nil
}

// readDescriptor reads what NervesHub derives its metadata from and returns the
// version as it stands. The uuid is the first half of the ELF file's SHA-256.
func readDescriptor(img *Image, head []byte) (version string, err error) {
	d := head[espDescriptor:]
	if binary.LittleEndian.Uint32(d) != espDescMagic {
		return "", refuse(Malformed, "no app descriptor follows the header: found %x at 32, not 3254cdab", d[:4])
	}
	img.UUID = uuid(d[144:160])
	img.Platform, img.Architecture = chip(binary.LittleEndian.Uint16(head[12:]))
	var ok bool
	if img.Product, ok = espText(d[48:80]); !ok {
		img.Product = ""
		return "", refuse(Malformed, "the app descriptor's project name is not text")
	}
	if version, ok = espText(d[16:48]); !ok {
		return "", refuse(BadVersion, "the app descriptor's version is not text")
	}
	return version, nil
}

// espText is a NUL-padded text.
func espText(b []byte) (string, bool) {
	b, _, _ = bytes.Cut(b, []byte{0})
	return string(b), printable(string(b))
}

// printable texts can be shown and logged as they are.
func printable(s string) bool {
	for _, c := range s {
		if c == utf8.RuneError || !unicode.IsPrint(c) {
			return false
		}
	}
	return true
}

// uuid writes 16 bytes as NervesHub does.
func uuid(b []byte) string {
	x := hex.EncodeToString(b)
	return x[:8] + "-" + x[8:12] + "-" + x[12:16] + "-" + x[16:20] + "-" + x[20:]
}

// espSegments adds up the segments and returns where the image ends, the
// checksum byte included.
func espSegments(r io.ReaderAt, size int64, count byte) (end int64, err error) {
	if count == 0 || count > espSegmentMax {
		return 0, refuse(Malformed, "the header counts %d segments; an image has 1 to %d", count, espSegmentMax)
	}
	sum := xor(espChecksum)
	at := int64(espHeaderSize)
	for i := range count {
		var head [8]byte // load address, length
		if at+8 > size {
			return 0, refuse(Truncated, "the image ends at %d, before segment %d of %d", size, i+1, count)
		}
		if err := readAt(r, head[:], at); err != nil {
			return 0, err
		}
		at += 8
		length := int64(binary.LittleEndian.Uint32(head[4:]))
		if length > size-at {
			return 0, refuse(Truncated, "segment %d of %d claims %d bytes, of which %d are there", i+1, count, length, size-at)
		}
		if err := copySection(&sum, r, at, length); err != nil {
			return 0, err
		}
		at += length
	}
	end = (at/espAlign + 1) * espAlign
	if end > size {
		return 0, refuse(Truncated, "the image ends at %d, before its checksum at %d", size, end-1)
	}
	var want [1]byte
	if err := readAt(r, want[:], end-1); err != nil {
		return 0, err
	}
	if want[0] != byte(sum) {
		return 0, refuse(BadDigest, "the checksum byte is %02x, the segments add up to %02x", want[0], byte(sum))
	}
	return end, nil
}

// espHash compares the SHA-256 that follows the image, if the header says that
// one does, and returns where it ends.
func espHash(r io.ReaderAt, size, end int64, appended byte) (int64, error) {
	switch {
	case appended == 0:
		return end, nil
	case appended != 1:
		return 0, refuse(Malformed, "hash_appended is %d, neither 0 nor 1", appended)
	case end+sha256.Size > size:
		return 0, refuse(Truncated, "the image ends at %d, within its SHA-256 at %d", size, end)
	}
	var want [sha256.Size]byte
	if err := readAt(r, want[:], end); err != nil {
		return 0, err
	}
	h := sha256.New()
	if err := copySection(h, r, 0, end); err != nil {
		return 0, err
	}
	if got := h.Sum(nil); !bytes.Equal(got, want[:]) {
		return 0, refuse(BadDigest, "the appended SHA-256 is %x, that of the image %x", want, got)
	}
	return end + sha256.Size, nil
}

// espPadding refuses what is neither image nor padding nor signature: nothing
// of a device reads it, and nothing vouches for it.
func espPadding(r io.ReaderAt, at, size int64, signed bool) error {
	end := size
	if signed {
		end -= espSector
	}
	p := padding{first: true}
	if err := copySection(&p, r, at, end-at); err != nil || !p.other {
		return err
	}
	if block := (at + espSector - 1) / espSector * espSector; block < end && end-block < espSector {
		var magic [1]byte
		if err := readAt(r, magic[:], block); err != nil {
			return err
		}
		if magic[0] == blockMagic {
			return refuse(Truncated, "the signature sector has %d of its %d bytes", end-block, espSector)
		}
	}
	return refuse(Malformed, "%d bytes that are neither padding nor a signature follow the image", end-at)
}

// padding looks for bytes other than those of erased flash, or of zeros.
type padding struct {
	fill         byte
	first, other bool
}

func (p *padding) Write(b []byte) (int, error) {
	for _, c := range b {
		if p.first {
			p.first, p.fill, p.other = false, c, c != 0 && c != 0xff
		}
		p.other = p.other || c != p.fill
	}
	return len(b), nil
}

// xor is the running checksum of esptool.
type xor byte

func (x *xor) Write(b []byte) (int, error) {
	sum := *x
	for _, c := range b {
		sum ^= xor(c)
	}
	*x = sum
	return len(b), nil
}

// copySection copies n bytes at off to w. That there are fewer is the image's
// fault.
func copySection(w io.Writer, r io.ReaderAt, off, n int64) error {
	copied, err := io.Copy(w, io.NewSectionReader(r, off, n))
	if err == nil && copied != n {
		return refuse(Truncated, "the file ends at %d, within something that goes to %d", off+copied, off+n)
	}
	return err
}

// A wholeFile is the content of an ESP-IDF image: all of its bytes.
type wholeFile struct {
	r    io.ReaderAt
	size int64
	want [32]byte // as inspected; zero before
}

func (f *wholeFile) writeTo(w io.Writer) error {
	h := sha256.New()
	if err := copySection(io.MultiWriter(w, h), f.r, 0, f.size); err != nil {
		return err
	}
	if got := [32]byte(h.Sum(nil)); f.want != [32]byte{} && got != f.want {
		return refuse(BadDigest, "the file has changed since it was inspected")
	}
	return nil
}
