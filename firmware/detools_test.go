package firmware

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"testing/iotest"
)

const mib = 1 << 20

func patchSample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "detools", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A patchCase is one patch applied to one base. Its verdict is that of the
// rebuilt image too: "bad_digest" is a patch that applies and makes a wrong one.
type patchCase struct {
	Patch, Base, Verdict string
	AlsoAcceptable       []string `json:"also_acceptable"`
}

func patchCases(t testing.TB) []patchCase {
	t.Helper()
	var cases []patchCase
	if err := json.Unmarshal(patchSample(t, "cases.json"), &cases); err != nil {
		t.Fatal(err)
	}
	return cases
}

// An oldImage fails the test when it is read outside of itself.
type oldImage struct {
	t testing.TB
	b []byte
}

func (o oldImage) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(o.b)) || int64(len(p)) > int64(len(o.b))-off {
		o.t.Errorf("read %d bytes at %d of an old image of %d", len(p), off, len(o.b))
		return 0, io.EOF
	}
	return copy(p, o.b[off:]), nil
}

// apply applies a patch held in memory, and checks what holds for any patch.
func apply(t testing.TB, old, patch []byte, limit int64) ([]byte, error) {
	t.Helper()
	var out bytes.Buffer
	n, err := ApplyPatch(oldImage{t, old}, int64(len(old)), bytes.NewReader(patch), &out, limit)
	if n != int64(out.Len()) {
		t.Errorf("says it wrote %d bytes, wrote %d", n, out.Len())
	}
	if n > limit {
		t.Errorf("wrote %d bytes, allowed were %d", n, limit)
	}
	if err != nil {
		class(t, err)
	}
	return out.Bytes(), err
}

// class is that of a fault of the patch, which err has to be.
func class(t testing.TB, err error) string {
	t.Helper()
	fault, ok := errors.AsType[*VerdictError](err)
	if !ok {
		t.Errorf("%v is no *VerdictError", err)
		return ""
	}
	known := []string{"malformed", "truncated", "too_big", "unsupported", "wrong_base"}
	if !slices.Contains(known, string(fault.Verdict)) || fault.Reason == "" {
		t.Errorf("class %q, reason %q", string(fault.Verdict), fault.Reason)
	}
	return string(fault.Verdict)
}

func TestPatchSamples(t *testing.T) {
	cases := patchCases(t)
	patches, err := filepath.Glob(filepath.Join("testdata", "detools", "*.patch"))
	if err != nil || len(patches) != 24 || len(cases) != 28 {
		t.Fatalf("%d cases, %d patches, %v; 28 and 24 expected", len(cases), len(patches), err)
	}
	used := map[string]bool{}
	for _, c := range cases {
		used[c.Patch] = true
		t.Run(c.Patch+" on "+c.Base, func(t *testing.T) {
			right := patchSample(t, "small-new.bin")
			if c.Patch == "large.patch" {
				right = patchSample(t, "large-new.bin")
			}
			got, err := apply(t, patchSample(t, c.Base), patchSample(t, c.Patch), mib)
			verdict := "ok"
			if err != nil {
				verdict = class(t, err)
			} else if !bytes.Equal(got, right) {
				verdict = "bad_digest"
			}
			t.Logf("%s (%s expected): %v", verdict, c.Verdict, err)
			if verdict != c.Verdict && !slices.Contains(c.AlsoAcceptable, verdict) {
				t.Errorf("%s; expected %s or one of %v", verdict, c.Verdict, c.AlsoAcceptable)
			}
		})
	}
	if len(used) != len(patches) {
		t.Errorf("%d of %d patches are in a case", len(used), len(patches))
	}
}

func TestIsPatch(t *testing.T) {
	for name, want := range map[string]bool{
		"small.patch": true, "large.patch": true, "other-heatshrink-10-5.patch": true,
		"small-new.bin": false, "empty.patch": false,
		"other-compression-none.patch": false, "other-compression-crle.patch": false, "other-type-in-place.patch": false,
	} {
		if got := IsPatch(patchSample(t, name)); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func TestPatchTruncated(t *testing.T) {
	old, patch := patchSample(t, "small-base.bin"), patchSample(t, "small.patch")
	for n := range patch {
		if _, err := apply(t, old, patch[:n], mib); err == nil || class(t, err) != "truncated" {
			t.Fatalf("cut to %d of %d bytes: %v", n, len(patch), err)
		}
	}
}

// A flipped bit is a fault or makes a wrong image; some, as in the distance of
// repeated zeros, change nothing. apply checks the rest.
func TestPatchFlipped(t *testing.T) {
	old, patch := patchSample(t, "small-base.bin"), patchSample(t, "small.patch")
	faults := 0
	for i := range patch {
		bad := bytes.Clone(patch)
		bad[i] ^= 1 << (i % 8)
		if _, err := apply(t, old, bad, mib); err != nil {
			faults++
		}
	}
	if faults == 0 {
		t.Error("none of the flipped bits was noticed")
	}
	t.Logf("%d of %d flipped bits were noticed", faults, len(patch))
}

func TestPatchLimit(t *testing.T) {
	old, patch, want := patchSample(t, "small-base.bin"), patchSample(t, "small.patch"), patchSample(t, "small-new.bin")
	if got, err := apply(t, old, patch, int64(len(want))); err != nil || !bytes.Equal(got, want) {
		t.Errorf("limit as large as the image: %v", err)
	}
	for _, limit := range []int64{int64(len(want)) - 1, 0} {
		if got, err := apply(t, old, patch, limit); err == nil || class(t, err) != "too_big" || len(got) > 0 {
			t.Errorf("limit %d: %v, %d bytes written", limit, err, len(got))
		}
	}
}

// Memory does not grow with what a patch declares or makes.
func TestPatchMemory(t *testing.T) {
	old := bytes.NewReader(patchSample(t, "small-base.bin"))
	for name, want := range map[string]int64{"expands-to-3MiB.patch": 3*mib + 1, "declared-size-2pow62.patch": 0} {
		patch := patchSample(t, name)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		n, err := ApplyPatch(old, old.Size(), bytes.NewReader(patch), io.Discard, math.MaxInt64)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > 256<<10 {
			t.Errorf("%s: %d bytes allocated", name, got)
		}
		if want > 0 && (err != nil || n != want) || want == 0 && class(t, err) != "truncated" {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
}

// stingyWriter passes on one byte at a time and checks nothing.
type stingyWriter struct{ w io.Writer }

func (s stingyWriter) Write(p []byte) (int, error) {
	for i := range p {
		if n, err := s.w.Write(p[i : i+1]); err != nil {
			return i + n, err
		}
	}
	return len(p), nil
}

func TestPatchSmallSteps(t *testing.T) {
	old, patch, want := patchSample(t, "large-base.bin"), patchSample(t, "large.patch"), patchSample(t, "large-new.bin")
	readers := map[string]func(io.Reader) io.Reader{
		"one byte": iotest.OneByteReader, "half": iotest.HalfReader, "end with data": iotest.DataErrReader,
	}
	for name, reader := range readers {
		var out bytes.Buffer
		n, err := ApplyPatch(bytes.NewReader(old), int64(len(old)), reader(bytes.NewReader(patch)), stingyWriter{&out}, mib)
		if err != nil || n != int64(len(want)) || !bytes.Equal(out.Bytes(), want) {
			t.Errorf("%s: %d bytes, %v", name, n, err)
		}
	}
}

// fullWriter takes so many bytes and then fails.
type fullWriter struct{ room int }

func (f *fullWriter) Write(p []byte) (int, error) {
	n := min(f.room, len(p))
	f.room -= n
	if n < len(p) {
		return n, errPatchDisk
	}
	return n, nil
}

var errPatchDisk = errors.New("disk")

// Errors of the files are theirs, not the patch's.
func TestPatchFileErrors(t *testing.T) {
	old, patch, want := patchSample(t, "small-base.bin"), patchSample(t, "small.patch"), patchSample(t, "small-new.bin")
	check := func(name string, err, cause error) {
		t.Helper()
		if _, is := errors.AsType[*VerdictError](err); is || !errors.Is(err, cause) {
			t.Errorf("%s: %v, expected %v", name, err, cause)
		}
	}
	whole := bytes.NewReader(old)
	for _, at := range []int{0, 1, 3, 4, 5, 700, len(patch)} {
		in := io.MultiReader(bytes.NewReader(patch[:at]), iotest.ErrReader(errPatchDisk))
		_, err := ApplyPatch(whole, whole.Size(), in, io.Discard, mib)
		check("patch", err, errPatchDisk)
	}
	for _, room := range []int{0, 1, patchChunk, len(want) - 1} {
		n, err := ApplyPatch(whole, whole.Size(), bytes.NewReader(patch), &fullWriter{room}, mib)
		check("writer", err, errPatchDisk)
		if n != int64(room) {
			t.Errorf("wrote %d of %d bytes by its own account", n, room)
		}
	}
	_, err := ApplyPatch(bytes.NewReader(old[:1000]), whole.Size(), bytes.NewReader(patch), io.Discard, mib)
	check("old image", err, io.EOF)
}

// From file to file, against a copy of the new image from file to file.
func BenchmarkApplyPatch(b *testing.B) {
	open := func(name string) *os.File {
		f, err := os.Open(filepath.Join("testdata", "detools", name))
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { f.Close() })
		return f
	}
	old, patch, image := open("large-base.bin"), open("large.patch"), open("large-new.bin")
	out, err := os.Create(filepath.Join(b.TempDir(), "new.bin"))
	if err != nil {
		b.Fatal(err)
	}
	defer out.Close()
	const oldSize, newSize = 135168, 135168
	start := func(files ...*os.File) {
		for _, f := range files {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("patch", func(b *testing.B) {
		b.SetBytes(newSize)
		b.ReportAllocs()
		for b.Loop() {
			start(patch, out)
			if n, err := ApplyPatch(old, oldSize, patch, out, mib); n != newSize || err != nil {
				b.Fatal(n, err)
			}
		}
	})
	b.Run("copy", func(b *testing.B) {
		b.SetBytes(newSize)
		buf := make([]byte, patchChunk)
		for b.Loop() {
			start(image, out)
			// Hidden, so that the kernel does not copy by itself.
			if n, err := io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{image}, buf); n != newSize || err != nil {
				b.Fatal(n, err)
			}
		}
	})
}
