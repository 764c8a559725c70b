package firmware

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// samples is testdata/images.json.
type samples struct {
	Keys []struct {
		Name, Text string
		Trusted    bool
		EFuse      string `json:"efuse_digest_sha256"`
	}
	Files    []sample
	Versions []struct {
		Raw        string
		Normalised *string
		Accepted   bool
	} `json:"version_vectors"`
}

type sample struct {
	Path          string
	SHA256        string `json:"sha256"`
	Verdict       Verdict
	Also          []Verdict `json:"also_acceptable"`
	Signature     Verdict   `json:"signature_verdict"`
	SignatureAlso []Verdict `json:"signature_also_acceptable"`
	TrustedKeys   []string  `json:"trusted_keys"`
	Expect        *struct {
		UUID, Product, Version, Platform, Architecture string
		ProjectName                                    string `json:"project_name"`
		VerifyingKey                                   string `json:"verifying_key"`
		Resources                                      []struct {
			Name   string
			Length int64
			SHA256 string `json:"sha256"`
		}
	}
}

func loadSamples(t testing.TB) samples {
	t.Helper()
	text, err := os.ReadFile("testdata/images.json")
	if err != nil {
		t.Fatal(err)
	}
	var s samples
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// trusting are the keys of those names.
func (s samples) trusting(t testing.TB, names ...string) Keys {
	t.Helper()
	var texts []string
	for _, k := range s.Keys {
		if slices.Contains(names, k.Name) {
			texts = append(texts, k.Text)
		}
	}
	keys, err := ParseKeys(texts...)
	if err != nil || len(texts) != len(names) {
		t.Fatalf("keys %v: %v", names, err)
	}
	return keys
}

// fingerprint is what Image.Key says of the key of that name.
func (s samples) fingerprint(name string) string {
	for _, k := range s.Keys {
		if k.Name == name {
			return cmp.Or(k.EFuse, k.Text)
		}
	}
	return ""
}

func (s sample) read(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", s.Path))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// verdictOf fails on errors that are no verdict.
func verdictOf(t testing.TB, err error) Verdict {
	t.Helper()
	if err == nil {
		return OK
	}
	v, ok := errors.AsType[*VerdictError](err)
	if !ok {
		t.Fatalf("no verdict, but %v", err)
	}
	if v.Reason == "" || v.Remedy == "" || strings.HasSuffix(v.Reason, ".") {
		t.Errorf("%v: reason %q, remedy %q", err, v.Reason, v.Remedy)
	}
	return v.Verdict
}

// How many samples there are of each format.
var sampleCount = map[string]int{"fw": 76, "esp": 46}

func TestSamples(t *testing.T) {
	all := loadSamples(t)
	ran := map[string]int{}
	for _, s := range all.Files {
		ran[filepath.Dir(s.Path)]++
		t.Run(s.Path, func(t *testing.T) {
			b := s.read(t)
			if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != s.SHA256 {
				t.Fatal("the file is not the sample")
			}
			img, err := Inspect(bytes.NewReader(b), int64(len(b)), all.trusting(t, s.TrustedKeys...), Limits{})
			got := verdictOf(t, err)
			t.Log(err)
			if got != s.Verdict && !slices.Contains(s.Also, got) {
				t.Errorf("the verdict is %s, should be %s or one of %v", got, s.Verdict, s.Also)
			}
			if s.Signature != "" && img.Signature != s.Signature && !slices.Contains(s.SignatureAlso, img.Signature) {
				t.Errorf("the signature is %s, should be %s or one of %v", img.Signature, s.Signature, s.SignatureAlso)
			}
			switch {
			case got == OK:
				checkImage(t, all, s, img)
			case got == Unsigned:
			case img.contents != nil:
				t.Error("something can be extracted from what was refused")
			}
		})
	}
	for dir, want := range sampleCount {
		if ran[dir] != want {
			t.Errorf("%d samples in %s, not %d", ran[dir], dir, want)
		}
	}
}

// checkImage compares what was found in a good image, and takes it out.
func checkImage(t *testing.T, all samples, s sample, img Image) {
	t.Helper()
	e := s.Expect
	if e == nil {
		t.Fatal("images.json does not say what is in it")
	}
	want := []string{e.UUID, e.Product + e.ProjectName, e.Version, e.Platform, e.Architecture, all.fingerprint(e.VerifyingKey)}
	got := []string{img.UUID, img.Product, img.Version, img.Platform, img.Architecture, img.Key}
	if !slices.Equal(got, want) {
		t.Errorf("found  %q\nshould %q", got, want)
	}
	if img.Kind == ESP {
		e.Resources = append(e.Resources, struct {
			Name   string
			Length int64
			SHA256 string `json:"sha256"`
		}{Whole, int64(len(s.read(t))), s.SHA256})
	}
	if len(img.Resources) != len(e.Resources) {
		t.Fatalf("%d resources, should be %d", len(img.Resources), len(e.Resources))
	}
	for i, want := range e.Resources {
		r := img.Resources[i]
		if r.Name != want.Name || r.Size != want.Length || hex.EncodeToString(r.SHA256[:]) != want.SHA256 {
			t.Errorf("resource %d is %s with %d bytes %x, should be %v", i, r.Name, r.Size, r.SHA256, want)
		}
		var out bytes.Buffer
		if err := img.Extract(&out, r.Name); err != nil {
			t.Error(err)
		}
		if sum := sha256.Sum256(out.Bytes()); hex.EncodeToString(sum[:]) != want.SHA256 {
			t.Errorf("resource %s comes out as %d other bytes", r.Name, out.Len())
		}
	}
}

// TestStrangers: nobody's signature is good when nobody is trusted, and keys of
// one scheme say nothing about the other.
func TestStrangers(t *testing.T) {
	all := loadSamples(t)
	for _, c := range []struct {
		path  string
		trust []string
		want  Verdict
		key   string
	}{
		{"fw/good-one-resource.fw", nil, UnknownKey, ""},
		{"fw/good-one-resource.fw", []string{"sb-key-1", "sb-key-2"}, UnknownKey, ""},
		{"fw/good-one-resource.fw", []string{"fw-key-2"}, BadSignature, ""},
		{"fw/good-one-resource.fw", []string{"sb-key-1", "fw-key-2", "fw-key-1"}, OK, "fw-key-1"},
		{"fw/signed-by-other-key.fw", []string{"fw-key-stranger"}, OK, "fw-key-stranger"},
		{"fw/unsigned.fw", nil, Unsigned, ""},
		{"esp/signed-good.bin", nil, UnknownKey, ""},
		{"esp/signed-good.bin", []string{"fw-key-1", "sb-key-2"}, UnknownKey, ""},
		{"esp/signed-wrong-key.bin", []string{"sb-key-stranger"}, OK, "sb-key-stranger"},
		{"esp/signed-embedded-key-swapped.bin", []string{"sb-key-stranger"}, UnknownKey, ""},
		{"esp/good-esp32.bin", nil, OK, ""},
	} {
		b := sample{Path: c.path}.read(t)
		img, err := Inspect(bytes.NewReader(b), int64(len(b)), all.trusting(t, c.trust...), Limits{})
		if got := verdictOf(t, err); got != c.want || img.Key != all.fingerprint(c.key) {
			t.Errorf("%s, trusting %v: %v by %q, should be %s by %s", c.path, c.trust, err, img.Key, c.want, c.key)
		}
	}
}

// TestMemory: what a file claims is not what is allocated.
func TestMemory(t *testing.T) {
	const most = 2 << 20
	all := loadSamples(t)
	keys := all.trusting(t, "fw-key-1", "fw-key-2", "sb-key-1", "sb-key-2")
	for _, s := range all.Files {
		b := s.read(t)
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		Inspect(bytes.NewReader(b), int64(len(b)), keys, Limits{})
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > most {
			t.Errorf("%s: took %d bytes, at most %d", s.Path, took, most)
		}
	}
}

func TestVersions(t *testing.T) {
	all := loadSamples(t)
	if len(all.Versions) != 38 {
		t.Errorf("%d versions, not 38", len(all.Versions))
	}
	for _, v := range all.Versions {
		got, ok := NormaliseVersion(v.Raw)
		if ok != v.Accepted || ok && got != *v.Normalised {
			t.Errorf("%q: %q %t", v.Raw, got, ok)
		}
	}
}
