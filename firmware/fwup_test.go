package firmware

import (
	"archive/zip"
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"golang.org/x/crypto/blake2b"
)

// signer is a key made of the bytes 0 to 31.
func signer() (ed25519.PrivateKey, Keys) {
	seed := make([]byte, ed25519.SeedSize)
	for i := range seed {
		seed[i] = byte(i)
	}
	private := ed25519.NewKeyFromSeed(seed)
	keys, err := ParseKeys(base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey)))
	if err != nil {
		panic(err)
	}
	return private, keys
}

// A file is a member to be packed.
type file struct{ name, content string }

// pack makes a signed archive as other tools than fwup do: with the sizes in
// data descriptors.
func pack(t testing.TB, conf string, files ...file) []byte {
	t.Helper()
	private, _ := signer()
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range append([]file{{signatureName, string(ed25519.Sign(private, []byte(conf)))}, {metaName, conf}}, files...) {
		w, err := z.Create(f.name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, f.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

const metadata = "meta-product=\"gw demo\"\nmeta-version=1.2.3\nmeta-platform=esp32c3\nmeta-architecture=riscv\n"

// listed is a file-resource section; length is as in meta.conf.
func listed(name, length, stored string) string {
	return fmt.Sprintf("file-resource %q {\nlength=%s\nblake2b-256=%x\n}\n", name, length, blake2b.Sum256([]byte(stored)))
}

// TestVector: fwup 1.16.0 gave this uuid, and this signature with the same key.
func TestVector(t *testing.T) {
	const conf = `meta-product="gw demo"
meta-description="demo image"
meta-version=1.2.3
meta-author=Acme
meta-platform=esp32c3
meta-architecture=riscv
meta-vcs-identifier=abc123
meta-misc=x
file-resource "app.bin" {
length=14
blake2b-256=58569a29824a2105a75a9bb9a59df15933f35e1af81d8280d53339724e4cddb0
}
file-resource "big.bin" {
length=100000
blake2b-256=0f8da2b1b299b2ad3283650f279de1abf7e4238942a1819cea48617bbb582558
}
task "upgrade" {
on-resource "app.bin" {
funlist={2,raw_write,0}
}
on-resource "big.bin" {
funlist={2,raw_write,64}
}
}
`
	private, keys := signer()
	const signature = "4a676559ac124021ad29fb9575fa8363fc30b9b114e8030800f6b2d3773fc1ad" +
		"52944c26d9061c1280f1c959693681f565ab4aea06e3b74be73060193fe14c05"
	if got := hex.EncodeToString(ed25519.Sign(private, []byte(conf))); got != signature {
		t.Fatalf("signature %s", got)
	}
	b := pack(t, conf, file{"data/app.bin", "hello gateway\n"}, file{"data/big.bin", strings.Repeat("A", 100000)})
	img, err := Inspect(bytes.NewReader(b), int64(len(b)), keys, Limits{})
	if err != nil || img.UUID != "3c55399b-96d9-5a6a-2a3c-4dc82b781299" || img.Product != "gw demo" ||
		img.Key != "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=" || len(img.Resources) != 2 {
		t.Errorf("found %+v: %v", img, err)
	}
}

func TestSparse(t *testing.T) {
	for length, c := range map[string]struct{ stored, want string }{
		"{3,2,1}":       {"abcd", "abc\x00\x00d"},
		"{0,2,4}":       {"abcd", "\x00\x00abcd"},
		"{4,2}":         {"abcd", "abcd\x00\x00"},
		"{0,1,0,2,4,1}": {"abcd", "\x00\x00\x00abcd\x00"},
		"{0,3}":         {"", "\x00\x00\x00"},
		"{4}":           {"abcd", "abcd"},
		"0":             {"", ""},
		"{}":            {"", ""},
		"{1,40000,1}":   {"ab", "a" + strings.Repeat("\x00", 40000) + "b"},
	} {
		_, keys := signer()
		b := pack(t, metadata+listed("a", length, c.stored), file{"data/a", c.stored})
		img, err := Inspect(bytes.NewReader(b), int64(len(b)), keys, Limits{})
		if err != nil {
			t.Errorf("%s: %v", length, err)
			continue
		}
		var out strings.Builder
		if err := img.Extract(&out, "a"); err != nil || out.String() != c.want || img.Resources[0].Size != int64(len(c.want)) {
			t.Errorf("%s: %d bytes %.20q: %v", length, img.Resources[0].Size, out.String(), err)
		}
	}
}

// TestSigned: a trusted signature makes nothing of this good.
func TestSigned(t *testing.T) {
	abc := file{"data/a", "abc"}
	for _, c := range []struct {
		name   string
		conf   string
		files  []file
		limits Limits
		want   Verdict
		reason string // a part of it
	}{
		{"good", metadata + listed("a", "3", "abc"), []file{abc}, Limits{}, OK, ""},
		{"nothing to flash", metadata, nil, Limits{}, OK, ""},
		{"listed twice", metadata + listed("a", "3", "abc") + listed("a", "3", "abc"), []file{abc}, Limits{}, Malformed, "twice"},
		{"said twice", metadata + "meta-version=1.2.4\n", nil, Limits{}, Malformed, "line 5: meta-version: is there twice"},
		{"no product", metadata[strings.Index(metadata, "\n")+1:], nil, Limits{}, Malformed, "meta-product"},
		{"a list", strings.Replace(metadata, "1.2.3", "{1.2.3,1.2.4}", 1), nil, Limits{}, Malformed, "meta-version"},
		{"control characters", strings.Replace(metadata, "gw demo", "gw\x1b[2Jdemo", 1), nil, Limits{}, Malformed, "meta-product"},
		{"an unlisted member", metadata, []file{abc}, Limits{}, Malformed, "does not list"},
		{"an absolute member", metadata, []file{{"/etc/passwd", "x"}}, Limits{}, UnsafePath, ""},
		{"a drive", metadata, []file{{"C:/a", "x"}}, Limits{}, UnsafePath, ""},
		{"a name of control characters", metadata, []file{{"data/a\x00b", "x"}}, Limits{}, UnsafePath, ""},
		{"a folder", metadata, []file{{"data/", ""}}, Limits{}, UnsafePath, ""},
		{"a long name", metadata, []file{{strings.Repeat("a", 256), ""}}, Limits{}, UnsafePath, ""},
		{"one resource under two names", metadata + listed("/data/a", "3", "abc") + listed("a", "3", "abc"), []file{abc}, Limits{}, Malformed, "does not hold"},
		{"larger than allowed", metadata + listed("a", "3", "abc"), []file{abc}, Limits{Expanded: 2}, TooBig, "more than 2"},
		{"larger together", metadata + listed("a", "3", "abc") + listed("b", "3", "abc"), []file{abc, {"data/b", "abc"}}, Limits{Expanded: 5}, TooBig, "more than 5"},
		{"mostly hole", metadata + listed("a", "{3,100000000}", "abc"), []file{abc}, Limits{}, TooBig, "200 times"},
		{"all hole", metadata + listed("a", "{0,4611686018427387904}", ""), []file{{"data/a", ""}}, Limits{}, TooBig, ""},
		{"an overflow", metadata + listed("a", "{9223372036854775807,9223372036854775807,2}", ""), []file{{"data/a", ""}}, Limits{}, TooBig, ""},
		{"too many members", metadata + listed("a", "3", "abc"), []file{abc}, Limits{Members: 2}, TooBig, "3 members"},
		{"a large file", metadata, nil, Limits{Size: 100}, TooBig, "at most 100"},
		{"a VCDIFF member of the right length is a resource", metadata + listed("a", "4", "\xd6\xc3\xc4\x00"), []file{{"data/a", "\xd6\xc3\xc4\x00"}}, Limits{}, OK, ""},
		{"an empty version", strings.Replace(metadata, "1.2.3", `""`, 1), nil, Limits{}, Malformed, "meta-version"},
		{"a v", strings.Replace(metadata, "1.2.3", "v1.2.3", 1), nil, Limits{}, BadVersion, "v1.2.3"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, keys := signer()
			b := pack(t, c.conf, c.files...)
			_, err := Inspect(bytes.NewReader(b), int64(len(b)), keys, c.limits)
			if got := verdictOf(t, err); got != c.want || err != nil && !strings.Contains(err.Error(), c.reason) {
				t.Errorf("%v; should be %s: …%s…", err, c.want, c.reason)
			}
		})
	}
}

// TestFlips: whichever bit of a signed image flips, nothing else comes out of
// it under the same signature, and no shorter one is good.
func TestFlips(t *testing.T) {
	all := loadSamples(t)
	keys := all.trusting(t, "fw-key-1", "fw-key-2", "sb-key-1")
	for path, step := range map[string]int{"fw/archive.fw": 1, "esp/version-plain.bin": 3, "esp/signed-small-good.bin": 41} {
		good := sample{Path: path}.read(t)
		want, err := Inspect(bytes.NewReader(good), int64(len(good)), keys, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < len(good); at += step {
			b := bytes.Clone(good)
			b[at] ^= 1 << (at % 8)
			got, err := Inspect(bytes.NewReader(b), int64(len(b)), keys, Limits{})
			if verdictOf(t, err) == OK && got.Signature == want.Signature && (got.Kind != Fwup || fmt.Sprint(got.Resources) != fmt.Sprint(want.Resources)) {
				t.Errorf("%s: nobody notices the bit at %d", path, at)
			}
			got, err = Inspect(bytes.NewReader(good[:at]), int64(at), keys, Limits{})
			if verdictOf(t, err) == OK && got.Signature == want.Signature {
				t.Errorf("%s: is good with its first %d bytes", path, at)
			}
		}
	}
}

// A failing file cannot be read from some offset on.
type failing struct {
	io.ReaderAt
	from int64
}

var errDisk = errors.New("the disk is gone")

func (f failing) ReadAt(b []byte, at int64) (int, error) {
	if at+int64(len(b)) > f.from {
		return 0, errDisk
	}
	return f.ReaderAt.ReadAt(b, at)
}

// TestReadErrors: a bad disk says nothing about an image.
func TestReadErrors(t *testing.T) {
	all := loadSamples(t)
	keys := all.trusting(t, "fw-key-1", "sb-key-1")
	for _, path := range []string{"fw/archive.fw", "esp/signed-small-good.bin"} {
		good := sample{Path: path}.read(t)
		for from := 0; from < len(good); from += 97 {
			_, err := Inspect(failing{bytes.NewReader(good), int64(from)}, int64(len(good)), keys, Limits{})
			if !errors.Is(err, errDisk) {
				t.Errorf("%s, read up to %d: %v", path, from, err)
			}
		}
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errDisk }

func TestExtract(t *testing.T) {
	_, keys := signer()
	b := pack(t, metadata+listed("a", "{1,1,2}", "abc"), file{"data/a", "abc"})
	img, err := Inspect(bytes.NewReader(b), int64(len(b)), keys, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Extract(io.Discard, "b"); err == nil {
		t.Error("extracts what is not there")
	}
	if err := img.Extract(full{}, "a"); !errors.Is(err, errDisk) {
		t.Errorf("written to a full disk: %v", err)
	}
	// What changed after it was inspected is noticed when it is taken out.
	for at := range b {
		b[at] ^= 0x10
		var out bytes.Buffer
		if err := img.Extract(&out, "a"); err == nil && out.String() != "a\x00bc" {
			t.Errorf("nobody notices byte %d", at)
		}
		b[at] ^= 0x10
	}
	e := sample{Path: "esp/version-plain.bin"}.read(t)
	if img, err = Inspect(bytes.NewReader(e), int64(len(e)), Keys{}, Limits{}); err != nil {
		t.Fatal(err)
	}
	e[len(e)-1] ^= 1
	if got := verdictOf(t, img.Extract(io.Discard, Whole)); got != BadDigest {
		t.Errorf("the file changed: %s", got)
	}
}
