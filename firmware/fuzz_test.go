package firmware

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// seed adds the samples of a folder, those that are small enough for the engine
// to do something with.
func seed(f *testing.F, dir string) {
	for _, s := range loadSamples(f).Files {
		if b := s.read(f); filepath.Dir(s.Path) == dir && len(b) <= 6<<10 {
			f.Add(b)
		}
	}
}

// inspectFuzzed holds Inspect to what it promises of any bytes, with limits
// small enough to be reached.
func inspectFuzzed(t *testing.T, b []byte, keys Keys) {
	limits := Limits{Expanded: 1 << 20}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	img, err := Inspect(bytes.NewReader(b), int64(len(b)), keys, limits)
	runtime.ReadMemStats(&after)
	if took, most := after.TotalAlloc-before.TotalAlloc, uint64(16<<20+64*len(b)); took > most {
		t.Errorf("took %d bytes of memory for %d, at most %d", took, len(b), most)
	}
	verdict := verdictOf(t, err)
	if verdict != OK && verdict != Unsigned {
		if img.contents != nil {
			t.Errorf("%v, and yet something can be extracted", err)
		}
		return
	}
	var sum int64
	for _, r := range img.Resources {
		var out bytes.Buffer
		if err := img.Extract(&out, r.Name); err != nil || int64(out.Len()) != r.Size {
			t.Errorf("%q: %d of %d bytes: %v", r.Name, out.Len(), r.Size, err)
		}
		sum += r.Size
	}
	if sum > limits.Expanded && img.Kind == Fwup {
		t.Errorf("the resources have %d bytes", sum)
	}
	for _, text := range []string{img.Product, img.Version, img.Platform, img.Architecture, img.Key} {
		if !printable(text) {
			t.Errorf("%q cannot be shown", text)
		}
	}
}

// FuzzFwup has seeds that are signed and some that are not, whose content is
// read without a key. Whatever readArchive takes, archive/zip sees the same.
func FuzzFwup(f *testing.F) {
	seed(f, "fw")
	f.Add(pack(f, metadata+listed("a", "{1,9,2}", "abc"), file{"data/a", "abc"}))
	f.Add(pack(f, "not meta.conf", file{"data/a", ""}))
	unsigned := pack(f, metadata+listed("a", "3", "abc"), file{"data/a", "abc"})
	f.Add(bytes.Replace(unsigned, []byte(signatureName), []byte("meta.conf.ED25519"), 2))
	_, keys := signer()
	f.Fuzz(func(t *testing.T, b []byte) {
		inspectFuzzed(t, b, keys)
		members, err := readArchive(bytes.NewReader(b), int64(len(b)), 1024)
		if verdictOf(t, err) != OK {
			return
		}
		z, err := zip.NewReader(bytes.NewReader(b), int64(len(b)))
		if err != nil || len(z.File) != len(members) {
			t.Fatalf("archive/zip: %v", err)
		}
		for i, m := range members {
			compareMember(t, b, m, z.File[i])
		}
	})
}

func compareMember(t *testing.T, b []byte, m member, z *zip.File) {
	if at, err := z.DataOffset(); z.Name != m.name || z.UncompressedSize64 != uint64(m.size) || at != m.data || err != nil {
		t.Fatalf("%+v is for archive/zip %+v: %v", m, z.FileHeader, err)
	}
	if m.size > 1<<20 {
		return
	}
	var ours, theirs strings.Builder
	if verdictOf(t, m.unpack(bytes.NewReader(b), &ours)) != OK {
		return
	}
	r, err := z.Open()
	if err == nil {
		_, err = io.Copy(&theirs, r)
	}
	if err != nil || ours.String() != theirs.String() {
		t.Fatalf("%q: archive/zip reads %d bytes, not %d: %v", m.name, theirs.Len(), ours.Len(), err)
	}
}

func FuzzESP(f *testing.F) {
	seed(f, "esp")
	f.Add(smallESP(0, func([]byte) {}))
	keys := loadSamples(f).trusting(f, "sb-key-1", "sb-key-2")
	f.Fuzz(func(t *testing.T, b []byte) { inspectFuzzed(t, b, keys) })
}

func FuzzMetaConf(f *testing.F) {
	f.Add(metadata + listed("a", "{1,9,2}", "abc"))
	f.Add("a=\"\\\"\\\\\" # end\nmbr mbr-a {\npartition 0 {\nblock-offset=63\n}\n}\n")
	f.Add(strings.Repeat("a {", 20))
	f.Add("task \"upgrade\" {\non-resource \"a\" {\nfunlist={2,raw_write,0,\"2\",\"x,y\"}\n}\non-init {\n}\n}\n")
	f.Fuzz(func(t *testing.T, text string) {
		top, err := parseMeta(text)
		if err != nil {
			if v, ok := errors.AsType[*VerdictError](err); !ok || v.Verdict != Malformed {
				t.Errorf("%v", err)
			}
			return
		}
		files, err := top.resources(1 << 20)
		if verdictOf(t, err) != OK {
			return
		}
		for _, file := range files {
			if file.size < file.stored || file.stored < 0 || file.size > 1<<20 {
				t.Errorf("%+v", file)
			}
		}
		for _, s := range top.sections {
			if s.kind == "" {
				t.Error("a section without a name")
			}
		}
	})
}
