package arch

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A source is one Go file of the module.
type source struct {
	path  string // from the module's directory, with slashes
	test  bool
	lines int
	fset  *token.FileSet
	tree  *ast.File
}

func (s source) at(n ast.Node) string {
	return fmt.Sprintf("%s:%d", s.path, s.fset.Position(n.Pos()).Line)
}

// sources are all Go files of the module, whatever their build constraints.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() && (base == "node_modules" || base == "testdata" || base != ".." && strings.HasPrefix(base, ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(base, ".go") {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, "", text, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		all = append(all, source{path: filepath.ToSlash(rel), test: strings.HasSuffix(base, "_test.go"),
			lines: bytes.Count(text, []byte("\n")), fset: fset, tree: tree})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// maxLines is how long a file may be that a reader takes in at one sitting.
const maxLines = 450

// long are the files that may be longer, and why.
var long = map[string]string{}

func TestFileLength(t *testing.T) {
	for _, s := range sources(t) {
		_, allowed := long[s.path]
		switch {
		case s.test:
		case s.lines > maxLines && !allowed:
			t.Errorf("%s has %d lines; split it (at most %d)", s.path, s.lines, maxLines)
		case s.lines <= maxLines && allowed:
			t.Errorf("%s has %d lines; take it off the list", s.path, s.lines)
		}
	}
}

// TestForbidden looks for what must not be written, whoever writes it.
func TestForbidden(t *testing.T) {
	for _, s := range sources(t) {
		standIn := strings.HasPrefix(s.path, "internal/hubtest/")
		ast.Inspect(s.tree, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				of, _ := n.X.(*ast.Ident)
				switch {
				case of == nil:
				case of.Name == "time" && n.Sel.Name == "Sleep" && !s.test:
					t.Errorf("%s: time.Sleep; waiting is a case of a select", s.at(n))
				case (of.Name == "t" || of.Name == "b" || of.Name == "tb") && strings.HasPrefix(n.Sel.Name, "Skip") && s.test:
					t.Errorf("%s: a test that skips itself proves nothing", s.at(n))
				}
			case *ast.KeyValueExpr:
				if key, ok := n.Key.(*ast.Ident); ok && !s.test {
					forbidTLS(t, s, key, standIn)
				}
			case *ast.AssignStmt:
				for i, to := range n.Lhs {
					field, ok := to.(*ast.SelectorExpr)
					if ok && !s.test && (len(n.Rhs) != len(n.Lhs) || !isNil(n.Rhs[i])) {
						forbidTLS(t, s, field.Sel, standIn)
					}
				}
			}
			return true
		})
	}
}

func isNil(e ast.Expr) bool {
	name, ok := e.(*ast.Ident)
	return ok && name.Name == "nil"
}

// forbidTLS knows the fields of [crypto/tls.Config] that nobody may set.
func forbidTLS(t *testing.T, s source, field *ast.Ident, standIn bool) {
	switch field.Name {
	case "InsecureSkipVerify":
		t.Errorf("%s: InsecureSkipVerify; add the root instead", s.at(field))
	case "ClientSessionCache":
		t.Errorf("%s: ClientSessionCache; a session that is resumed lets one device speak as another", s.at(field))
	case "Certificates":
		if !standIn {
			t.Errorf("%s: Certificates; NervesHub names no CA of ours in its request, so that only GetClientCertificate sends one", s.at(field))
		}
	}
}
