package house

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Edges says which packages of a module may import which others of it. Keys
// and values are relative to the module: "." is its root package, "a/b" one
// package, "a/..." a and all below it. A package follows the key that names it
// closest; one that no key names is a problem.
type Edges map[string][]string

// Imports returns what the production code of the tree's own module imports
// against the edges. Packages below internal/ are free to import what they
// need, but whoever imports one of them answers for that too.
func (t *Tree) Imports(edges Edges) []string {
	module := t.Modules["."]
	imports := make(map[string]map[string]bool) // by package; only the module's own
	places := make(map[string]string)
	for _, f := range t.Files {
		if f.Test || f.Module != "." {
			continue
		}
		from := f.dir()
		if imports[from] == nil {
			imports[from] = make(map[string]bool)
		}
		for _, spec := range f.Syntax.Imports {
			if p := importPath(spec.Path.Value); p == module || strings.HasPrefix(p, module+"/") {
				to := relative(module, p)
				imports[from][to] = true
				places[from+" "+to] = t.at(spec.Pos())
			}
		}
	}
	var problems []string
	for _, from := range slices.Sorted(maps.Keys(imports)) {
		if matches("internal/...", from) {
			continue
		}
		allowed, known := edges.of(from)
		if !known {
			problems = append(problems, from+": the table of import edges does not name this package")
			continue
		}
		for _, to := range slices.Sorted(maps.Keys(imports[from])) {
			for _, end := range throughInternal(imports, to, nil) {
				if slices.ContainsFunc(allowed, func(pattern string) bool { return matches(pattern, end) }) {
					continue
				}
				problem := places[from+" "+to] + from + " must not import " + end
				if end != to {
					problem += " (by way of " + to + ")"
				}
				problems = append(problems, problem)
			}
		}
	}
	return problems
}

// throughInternal returns the packages outside internal/ that an import of to
// brings in.
func throughInternal(imports map[string]map[string]bool, to string, seen []string) []string {
	if !matches("internal/...", to) {
		return []string{to}
	}
	if slices.Contains(seen, to) {
		return nil
	}
	var ends []string
	for _, next := range slices.Sorted(maps.Keys(imports[to])) {
		ends = append(ends, throughInternal(imports, next, append(seen, to))...)
	}
	slices.Sort(ends)
	return slices.Compact(ends)
}

// of returns what the edges allow the package to import.
func (e Edges) of(pkg string) (allowed []string, known bool) {
	if allowed, known = e[pkg]; known {
		return allowed, true
	}
	for dir := pkg; dir != "."; dir = path.Dir(dir) {
		if allowed, known = e[dir+"/..."]; known {
			return allowed, true
		}
	}
	return nil, false
}

// matches reports whether the pattern names the package.
func matches(pattern, pkg string) bool {
	dir, below := strings.CutSuffix(pattern, "/...")
	return pkg == dir || below && strings.HasPrefix(pkg, dir+"/")
}

// InternalOfOthers returns where modules other than the tree's own, tests
// included, import an internal package that is not theirs.
func (t *Tree) InternalOfOthers() []string {
	var problems []string
	for _, f := range t.Files {
		for _, spec := range f.Syntax.Imports {
			p := importPath(spec.Path.Value)
			if f.Module != "." && strings.HasPrefix(p, t.Modules["."]+"/") && isInternal(p) &&
				!strings.HasPrefix(p, f.ModulePath+"/") {
				problems = append(problems, t.at(spec.Pos())+f.Module+" must not import "+p+" of another module")
			}
		}
	}
	return problems
}

func isInternal(importPath string) bool { return strings.Contains(importPath+"/", "/internal/") }

// Importing returns where production files that meet applies import the
// package at importPath or one below it.
func (t *Tree) Importing(target string, applies func(*File) bool) []string {
	var problems []string
	for _, f := range t.Files {
		if !f.production() || !applies(f) {
			continue
		}
		for _, spec := range f.Syntax.Imports {
			if p := importPath(spec.Path.Value); matches(target+"/...", p) {
				problems = append(problems, t.at(spec.Pos())+"must not import "+p)
			}
		}
	}
	return problems
}

func importPath(literal string) string {
	p, err := strconv.Unquote(literal)
	if err != nil {
		return literal // the parser has refused such a file already
	}
	return p
}

// Requirements returns the modules that the text of a go.mod requires.
func Requirements(goMod string) []string {
	var required []string
	inBlock := false
	for line := range strings.Lines(goMod) {
		line, _, _ = strings.Cut(line, "//")
		words := strings.Fields(line)
		switch {
		case len(words) == 0:
		case words[0] == "require" && len(words) > 1 && words[1] == "(":
			inBlock = true
		case words[0] == ")":
			inBlock = false
		case words[0] == "require" && len(words) > 1:
			required = append(required, words[1])
		case inBlock:
			required = append(required, words[0])
		}
	}
	return required
}
