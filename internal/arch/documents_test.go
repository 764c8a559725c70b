package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// documents are the Markdown files of the repository.
func documents(t *testing.T) []string {
	t.Helper()
	var all []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	if len(all) == 0 {
		t.Fatal("no documents")
	}
	return all
}

var (
	link      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading   = regexp.MustCompile(`(?m)^#+ (.*)$`)
	notInSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// TestLinks: what a document points at in this repository is there, down to the
// heading.
func TestLinks(t *testing.T) {
	for _, name := range documents(t) {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(m[1], "://") {
				continue
			}
			target := name
			if file != "" {
				target = filepath.Join(filepath.Dir(name), file)
			}
			if info, err := os.Stat(target); err != nil {
				t.Errorf("%s: %s is not there", name, m[1])
			} else if anchor != "" && (info.IsDir() || !hasHeading(t, target, anchor)) {
				t.Errorf("%s: %s has no heading %s", name, file, anchor)
			}
		}
	}
}

// hasHeading looks for a heading by the anchor that renderers make of it.
func hasHeading(t *testing.T, name, anchor string) bool {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range heading.FindAllStringSubmatch(string(text), -1) {
		slug := strings.ReplaceAll(notInSlug.ReplaceAllString(strings.ToLower(m[1]), ""), " ", "-")
		if slug == anchor {
			return true
		}
	}
	return false
}

// TestReadmeLayout: every package has its line in README's layout, and no line
// is about one that went.
func TestReadmeLayout(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, layout, ok := strings.Cut(string(text), "\n## Layout\n")
	if !ok {
		t.Fatal("README.md has no heading Layout")
	}
	lines := map[string]bool{}
	for line := range strings.Lines(layout) {
		if cells, ok := cells(strings.TrimSpace(line)); ok && code(cells[0]) != "" {
			lines[code(cells[0])] = true
		}
	}
	for dir := range ours(list(t)) {
		if parent := filepath.Dir(dir); !lines[dir] && !lines[parent] {
			t.Errorf("README.md: the layout leaves out %s", dir)
		}
	}
	for dir := range lines {
		if _, err := os.Stat(filepath.Join(root, dir)); err != nil {
			t.Errorf("README.md: the layout has %s, which is not there", dir)
		}
	}
}
