package firmware

import (
	"bytes"
	"crypto/sha256"
	"strings"
	"testing"
)

// smallESP is an application image of one segment, which has the descriptor and
// extra bytes of 0xaa.
func smallESP(extra int, change func(b []byte)) []byte {
	b := make([]byte, espLeast)
	b[0], b[1], b[12], b[23] = espMagic, 1, 9, 1
	copy(b[espDescriptor:], "\x32\x54\xcd\xab")
	copy(b[48:], "v1.2")
	copy(b[80:], "node")
	b = append(b, bytes.Repeat([]byte{0xaa}, extra)...)
	length := len(b) - espDescriptor
	b[28], b[29] = byte(length), byte(length>>8)
	change(b)
	sum := xor(espChecksum)
	sum.Write(b[espDescriptor:])
	b = append(b, make([]byte, espAlign-len(b)%espAlign)...)
	b[len(b)-1] = byte(sum)
	hash := sha256.Sum256(b)
	return append(b, hash[:]...)
}

func TestESP(t *testing.T) {
	none := func([]byte) {}
	set := func(at int, v ...byte) func([]byte) { return func(b []byte) { copy(b[at:], v) } }
	small := smallESP(0, none)
	for _, c := range []struct {
		name   string
		b      []byte
		want   Verdict
		reason string // a part of it
	}{
		{"good", small, OK, ""},
		{"zeros after it", append(bytes.Clone(small), make([]byte, 100)...), OK, ""},
		{"erased flash after it", append(bytes.Clone(small), bytes.Repeat([]byte{0xff}, 1<<20)...), OK, ""},
		{"both after it", append(bytes.Clone(small), 0xff, 0), Malformed, "2 bytes"},
		{"one other byte after it", append(bytes.Clone(small), 1), Malformed, "1 bytes"},
		{"a signature's magic in the image", smallESP(2*espSector-espLeast-espAlign-sha256.Size, set(espSector, blockMagic)), OK, ""},
		{"hash_appended 2", smallESP(0, set(23, 2)), Malformed, "hash_appended is 2"},
		{"another version", smallESP(0, set(48, []byte("1.2.x")...)), BadVersion, `"1.2.x"`},
		{"a version with an escape", smallESP(0, set(48, 0x1b)), BadVersion, "not text"},
		{"a project name in Latin-1", smallESP(0, set(80, 0xe4)), Malformed, "project name"},
		{"three segments claimed", smallESP(0, set(1, 3)), Truncated, "claims"},
		{"cut after its segment", small[:espLeast], Truncated, "before its checksum"},
		{"cut before a second segment", smallESP(0, set(1, 2))[:espLeast+4], Truncated, "before segment 2 of 2"},
		{"a patch", []byte{patchKind, 1, 2, 3}, Unsupported, "detools patch"},
		{"one byte", []byte{espMagic}, Truncated, "has 1 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, err := Inspect(bytes.NewReader(c.b), int64(len(c.b)), Keys{}, Limits{})
			if got := verdictOf(t, err); got != c.want || err != nil && !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%v; should be %s: …%s…", err, c.want, c.reason)
			}
			if err == nil && (img.Version != "1.2.0" || img.Product != "node" || img.Platform != "esp32s3" || img.Signature != Unsigned) {
				t.Errorf("found %+v", img)
			}
		})
	}
}

func TestChips(t *testing.T) {
	for id, want := range map[uint16][2]string{0: {"esp32", "xtensa"}, 0x17: {"esp32c5", "riscv"}, 23 << 8: {"esp32-5888", "unknown"}} {
		if platform, architecture := chip(id); platform != want[0] || architecture != want[1] {
			t.Errorf("%#x: %s %s", id, platform, architecture)
		}
	}
}
