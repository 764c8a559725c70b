package firmware

import (
	"bytes"
	"math"
	"strings"
	"testing"
)

// pack encodes the bytes given as heatshrink literals, which any parameters
// allow: patches can be written by hand.
func packPatch(data ...byte) []byte {
	var out []byte
	used := 8
	put := func(bit byte) {
		if used == 8 {
			out, used = append(out, 0), 0
		}
		out[len(out)-1] |= bit << (7 - used)
		used++
	}
	for _, c := range data {
		put(1)
		for i := range 8 {
			put(c >> (7 - i) & 1)
		}
	}
	return out
}

// varint encodes n as readVarint reads it.
func varint(n int64) []byte {
	var sign byte
	u := uint64(n)
	if n < 0 {
		sign, u = 0x40, -u
	}
	out := []byte{sign | byte(u&0x3f)}
	for u >>= 6; u > 0; u >>= 7 {
		out[len(out)-1] |= 0x80
		out = append(out, byte(u&0x7f))
	}
	return out
}

// written is a patch to a new image of size bytes with these decompressed bytes.
func written(size int64, data ...[]byte) []byte {
	head := append([]byte{patchKind}, varint(size)...)
	return append(append(head, 0x44), packPatch(bytes.Join(data, nil)...)...)
}

// format is the size of no data format patch.
var format = varint(0)

// record is one: what to add, what to insert, how to move.
func record(add, insert string, by int64) []byte {
	return bytes.Join([][]byte{varint(int64(len(add))), []byte(add), varint(int64(len(insert))), []byte(insert), varint(by)}, nil)
}

func TestPatchWritten(t *testing.T) {
	const old = "0123456789"
	endless := bytes.Repeat([]byte{0xff}, 20)
	for _, c := range []struct {
		name  string
		patch []byte
		want  string // the new image, or
		class string
		says  string // in the reason
	}{
		{"insertion", written(3, format, record("", "abc", 0)), "abc", "", ""},
		{"difference", written(3, format, record("\x00\x01\xff", "", 0)), "021", "", ""},
		{"all of the old image", written(10, format, record(strings.Repeat("\x00", 10), "", 0)), old, "", ""},
		{"moves", written(4, format, record("", "", 8), record("\x00\x00", "", -10), record("\x00", "x", 9)), "890x", "", ""},
		{"minus zero", written(1, format, []byte{0x40, 1, 'x', 0x40}), "x", "", ""},
		{"long zero", written(1, format, []byte{0x80, 0x80, 0, 1, 'x', 0}), "x", "", ""},
		// A repetition of two bytes before the first one: zeros.
		{"before the stream", append([]byte{patchKind, 1, 0x44, 0x00, 0x01}, packPatch(1, 'x', 0)...), "x", "", ""},
		// After eight literals a repetition of the last one, twice or three times.
		{"repetition to the end", append(append([]byte{patchKind, 6, 0x44}, packPatch(0, 0, 6, 'a', 'b', 'c', 'd', 0)...), 0x00, 0x01), "abcd\x00\x00", "", ""},
		{"repetition past the end", append(append([]byte{patchKind, 6, 0x44}, packPatch(0, 0, 6, 'a', 'b', 'c', 'd', 0)...), 0x00, 0x02), "", "malformed", "goes on"},

		{"empty new image", written(0, format), "", "malformed", "empty"},
		{"negative size", written(-1, format), "", "malformed", "size is -1"},
		{"largest size", written(math.MaxInt64, format), "", "too_big", "9223372036854775807"},
		{"size of 64 bits", append([]byte{patchKind, 0xff}, endless...), "", "malformed", "63 bits"},
		{"data format patch", written(1, varint(1), varint(0)), "", "unsupported", "data format"},
		{"negative data format patch", written(1, varint(-1)), "", "malformed", "-1"},
		{"negative difference", written(1, format, varint(-1)), "", "malformed", "difference is -1"},
		{"negative insertion", written(1, format, varint(0), varint(-1)), "", "malformed", "insertion is -1"},
		{"long difference", written(1, format, record("\x00\x00", "", 0)), "", "malformed", "lacks 1"},
		{"long insertion", written(3, format, record("\x00", "abc", 0)), "", "malformed", "lacks 2"},
		{"huge insertion", written(3, format, varint(0), varint(math.MaxInt64)), "", "malformed", "lacks 3"},
		{"past the old image", written(11, format, record(strings.Repeat("\x00", 11), "", 0)), "", "wrong_base", "which has 10"},
		{"moved past its end", written(1, format, record("", "x", 11)), "", "wrong_base", "past its end"},
		{"moved far", written(2, format, record("", "x", 1), record("", "y", math.MaxInt64)), "", "wrong_base", "past its end"},
		{"moved before its beginning", written(1, format, record("", "x", -1)), "", "malformed", "before its beginning"},
		{"moved far back", written(1, format, record("", "x", -math.MaxInt64)), "", "malformed", "before its beginning"},
		{"move of 64 bits", written(1, format, varint(0), varint(1), []byte{'x'}, endless), "", "malformed", "63 bits"},
		{"idle records", written(2, format, bytes.Repeat(record("", "", 0), 10)), "", "malformed", "more records"},
		{"no last move", written(1, format, varint(0), varint(1), []byte{'x'}), "", "truncated", "a move"},
		{"one record too few", written(2, format, record("", "x", 0)), "", "truncated", "size of a difference"},
		{"one record too many", written(1, format, record("", "x", 0), record("", "", 0)), "", "malformed", "goes on"},
		{"one byte too many", append(written(1, format, record("", "x", 0)), 0), "", "malformed", "goes on"},
		{"window of 16", append([]byte{patchKind, 1, 0xc4}, packPatch(0, 0, 1, 'x', 0)...), "", "malformed", "16 bits"},
		{"lookahead as the window", append([]byte{patchKind, 1, 0x45}, packPatch(0, 0, 1, 'x', 0)...), "", "malformed", "lookahead of 8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := apply(t, []byte(old), c.patch, mib)
			if err == nil {
				if c.class != "" || string(got) != c.want {
					t.Errorf("made %q", got)
				}
				return
			}
			if class(t, err) != c.class || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v; expected %q, %q", err, c.class, c.says)
			}
		})
	}
}

// The seeds are the beginnings of the sample patches, and a whole small one: the
// fuzzer spends its time shortening what is longer.
func FuzzPatch(f *testing.F) {
	bases := []string{"small-base.bin", "large-base.bin", "small-base-near.bin", "small-new.bin"}
	images := map[string][]byte{}
	number := map[string]uint8{}
	for i, name := range bases {
		images[name], number[name] = patchSample(f, name), uint8(i)
	}
	for _, c := range patchCases(f) {
		i, ok := number[c.Base]
		if !ok {
			f.Fatalf("base %s is not among the images", c.Base)
		}
		patch := patchSample(f, c.Patch)
		f.Add(patch[:min(len(patch), 256)], i)
	}
	f.Add(written(4, format, record("", "", 8), record("\x00\x00", "", -10), record("\x00", "x", 9)), uint8(0))
	f.Fuzz(func(t *testing.T, patch []byte, base uint8) {
		apply(t, images[bases[int(base)%len(bases)]], patch, 256<<10)
	})
}

// The decompressed bytes are fuzzed on their own: a change to a compressed bit
// reaches few of the records' faults.
func FuzzPatchRecords(f *testing.F) {
	f.Add(int64(3), bytes.Join([][]byte{format, record("", "abc", 0)}, nil))
	f.Add(int64(4), bytes.Join([][]byte{format, record("", "", 8), record("\x00\x00", "", -10), record("\x00", "x", 9)}, nil))
	f.Add(int64(math.MaxInt64), format)
	old := []byte("0123456789")
	f.Fuzz(func(t *testing.T, size int64, data []byte) {
		if size == math.MinInt64 { // has no varint
			return
		}
		got, err := apply(t, old, written(size, data), mib)
		if err == nil && int64(len(got)) != size {
			t.Errorf("made %d bytes of %d", len(got), size)
		}
	})
}
