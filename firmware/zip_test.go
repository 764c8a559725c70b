package firmware

import (
	"bytes"
	"strings"
	"testing"
)

// TestZip: what is wrong with an archive of which archive/zip reads most.
func TestZip(t *testing.T) {
	_, keys := signer()
	good := pack(t, metadata+listed("a", "3", "abc"), file{"data/a", "abc"})
	local := bytes.LastIndex(good, []byte(localSig))
	central := bytes.LastIndex(good, []byte(centralSig))
	directory := bytes.Index(good, []byte(centralSig))
	end := len(good) - endSize
	set := func(at int, v ...byte) func([]byte) []byte {
		return func(b []byte) []byte { copy(b[at:], v); return b }
	}
	for _, c := range []struct {
		name   string
		change func(b []byte) []byte
		want   Verdict
		reason string // a part of it
	}{
		{"nothing", set(0), OK, ""},
		{"a comment", func(b []byte) []byte { b[end+20] = 1; return append(b, 'x') }, Malformed, "1 bytes follow"},
		{"a comment that is not there", set(end+20, 1), Malformed, "a comment"},
		{"a second volume", set(end+4, 1), Malformed, "several volumes"},
		{"more members than there are", set(end+8, 4, 0, 4), Malformed, "damaged"},
		{"fewer members than there are", set(end+8, 2, 0, 2), Malformed, "more than its 2 entries"},
		{"a directory elsewhere", set(end+16, 1, 0, 0, 0), Malformed, "should be the"},
		{"a directory of 4 GiB", set(end+12, 0xff, 0xff, 0xff, 0xff), Malformed, "should be the"},
		{"a damaged directory", set(central, 'X'), Malformed, "directory is damaged"},
		{"a name longer than the directory", set(central+28, 0xff, 0xff), Malformed, "directory is damaged"},
		{"encrypted", set(central+8, 9), Unsupported, "encrypted"},
		{"packed otherwise", set(central+10, 12), Unsupported, "method 12"},
		{"stored with two sizes", set(central+10, 0), Malformed, "two sizes"},
		{"sizes in a ZIP64 field that is not there", set(central+20, 0xff, 0xff, 0xff, 0xff), Malformed, "missing"},
		{"the header elsewhere", set(central+42, 0, 0, 0, 0), Malformed, "overlap"},
		{"another name in front", set(local+localSize, 'D'), Malformed, "differs"},
		{"another method in front", set(local+8, 0), Malformed, "differs"},
		{"no header in front", set(local, 'X'), Malformed, "not where"},
		{"a longer extra field in front", set(local+28, 0xff, 0xff), Malformed, "not where"},
		{"packed bytes beyond the directory", set(central+20, 0xff, 0xff), Malformed, "not where"},
		{"another size in front", set(local+22, 4), Malformed, "differs"},
		{"no descriptor", func(b []byte) []byte { b[local+6], b[central+8] = 0, 0; return b }, Malformed, "differs"},
		{"a damaged descriptor", set(directory-16, 'X'), Malformed, "bytes follow"},
		{"another CRC behind", set(directory-12, 1), Malformed, "differs"},
		{"a damaged member", set(local+localSize+len("data/a"), 0xff), Malformed, "unpacked"},
		{"a member that ends early", set(local+localSize+len("data/a"), 3, 0), Malformed, "ends after 0 of 3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := c.change(bytes.Clone(good))
			_, err := Inspect(bytes.NewReader(b), int64(len(b)), keys, Limits{})
			if got := verdictOf(t, err); got != c.want || err != nil && !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%v; should be %s: …%s…", err, c.want, c.reason)
			}
		})
	}
}

// TestZip64: the two end records and the extra fields agree, or the archive is
// refused, whichever byte of them is another.
func TestZip64(t *testing.T) {
	b := sample{Path: "fw/good-zip64.fw"}.read(t)
	at := len(b) - endSize - locator64Size - end64Size
	for i := at; i < len(b)-endSize; i++ {
		if i >= at+12 && i < at+16 { // version made by, version needed
			continue
		}
		b[i] ^= 0x40
		if _, err := readArchive(bytes.NewReader(b), int64(len(b)), 10); verdictOf(t, err) == OK {
			t.Errorf("nobody notices byte %d of the ZIP64 records", i-at)
		}
		b[i] ^= 0x40
	}
	if _, err := readArchive(bytes.NewReader(b), int64(len(b)), 10); err != nil {
		t.Error(err)
	}
}
