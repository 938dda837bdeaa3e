// Package house checks the rules of the house that a compiler does not: who
// imports whom, what is documented and how, what must not stand in the code,
// and that what the Markdown files show exists. The rules themselves, with
// their tables, are in the module's house_test.go; this package only looks.
//
// Every check returns the problems it found, each with its place, in an order
// that does not change; nil if there are none. Tests and generated files count
// where the check says so.
package house

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"strings"
)

// File is one Go file of a [Tree].
type File struct {
	// Path is the file's place in the tree, with slashes.
	Path string
	// Module is the directory of the module that the file belongs to, "." for
	// the tree's own; ModulePath is that module's name.
	Module, ModulePath string
	// ImportPath is that of the file's package.
	ImportPath string
	// Test and Generated say what kind of file it is. What is neither is
	// production code, programs included.
	Test, Generated bool
	// Text and Syntax are what stands in the file.
	Text   string
	Syntax *ast.File
}

func (f *File) production() bool { return !f.Test && !f.Generated }

// dir is the file's directory, relative to its module.
func (f *File) dir() string { return relative(f.ModulePath, f.ImportPath) }

// relative shortens the path of a package of the module; the module's own
// package is ".".
func relative(module, importPath string) string {
	if importPath == module {
		return "."
	}
	return strings.TrimPrefix(importPath, module+"/")
}

// Tree is a source tree with its modules.
type Tree struct {
	// Files are the Go files of all modules, by path.
	Files []*File
	// Modules maps the directories of modules to their paths; "." is the
	// tree's own.
	Modules map[string]string

	fset *token.FileSet
}

// Load reads the tree below fsys, which must have a go.mod. Like the go
// command it leaves out testdata and what begins with a dot or an underscore.
func Load(fsys fs.FS) (*Tree, error) {
	t := &Tree{Modules: make(map[string]string), fset: token.NewFileSet()}
	err := fs.WalkDir(fsys, ".", func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name != "." && strings.ContainsAny(path.Base(name)[:1], "._"), path.Base(name) == "testdata":
			if entry.IsDir() {
				return fs.SkipDir
			}
			return nil
		case entry.IsDir():
			return t.enter(fsys, name)
		case path.Ext(name) == ".go":
			return t.add(fsys, name)
		default:
			return nil
		}
	})
	if err == nil && t.Modules["."] == "" {
		err = fmt.Errorf("house: no go.mod at the tree's root")
	}
	return t, err
}

// enter notes the module that begins in dir, if one does.
func (t *Tree) enter(fsys fs.FS, dir string) error {
	text, err := fs.ReadFile(fsys, path.Join(dir, "go.mod"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for line := range strings.Lines(string(text)) {
		line, _, _ = strings.Cut(line, "//")
		if words := strings.Fields(line); len(words) == 2 && words[0] == "module" {
			t.Modules[dir] = words[1]
			return nil
		}
	}
	return fmt.Errorf("house: %s/go.mod names no module", dir)
}

func (t *Tree) add(fsys fs.FS, name string) error {
	text, err := fs.ReadFile(fsys, name)
	if err != nil {
		return err
	}
	syntax, err := parser.ParseFile(t.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	dir := path.Dir(name)
	module := dir
	for module != "." && t.Modules[module] == "" {
		module = path.Dir(module)
	}
	modulePath := t.Modules[module]
	t.Files = append(t.Files, &File{
		Path: name, Text: string(text), Syntax: syntax,
		Module: module, ModulePath: modulePath,
		ImportPath: path.Join(modulePath, strings.TrimPrefix(dir, module)),
		Test:       strings.HasSuffix(name, "_test.go"),
		Generated:  ast.IsGenerated(syntax),
	})
	return nil
}

// at returns "path:line: " of a place in the tree.
func (t *Tree) at(pos token.Pos) string {
	p := t.fset.Position(pos)
	return fmt.Sprintf("%s:%d: ", p.Filename, p.Line)
}
