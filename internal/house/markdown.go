package house

import (
	"fmt"
	"go/format"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Block is a fenced block of a Markdown text.
type Block struct {
	// Language is the word behind the fence: "go", "sh".
	Language string
	// Line is where the block's first line stands in the text, from 1.
	Line int
	Text string
}

// Program reports whether the block is a whole Go program.
func (b Block) Program() bool {
	return b.Language == "go" && regexp.MustCompile(`(?m)^package main$`).MatchString(b.Text)
}

// Blocks returns the fenced blocks of a Markdown text.
func Blocks(markdown string) []Block {
	var blocks []Block
	var open *Block
	for i, line := range strings.Split(markdown, "\n") {
		fence, isFence := strings.CutPrefix(strings.TrimLeft(line, " "), "```")
		switch {
		case isFence && open == nil:
			language, _, _ := strings.Cut(strings.TrimSpace(fence), " ")
			open = &Block{Language: language, Line: i + 2}
		case isFence:
			blocks = append(blocks, *open)
			open = nil
		case open != nil:
			open.Text += line + "\n"
		}
	}
	return blocks
}

var (
	fenced      = regexp.MustCompile("(?ms)^ *```.*?^ *```")
	codeSpan    = regexp.MustCompile("`([^`\n]+)`")
	makeCommand = regexp.MustCompile(`(?m)(?:^|[;&|(] *)(?:\$ )?make +([a-z][a-z-]*)`)
	localPath   = regexp.MustCompile(`(?:^|\s)(\.ci/[\w-]+|\./[\w./-]+)`)
	link        = regexp.MustCompile(`\]\(([^)\s]+)\)`)
)

// Markdown checks a Markdown file of the tree: Go code must parse; the make
// targets, the local paths in commands, the packages of the tree's modules and
// the files linked to must exist.
func (t *Tree) Markdown(fsys fs.FS, name string) ([]string, error) {
	text, err := fs.ReadFile(fsys, name)
	if err != nil {
		return nil, err
	}
	markdown := string(text)
	var problems []string
	complain := func(format string, args ...any) {
		problems = append(problems, name+": "+fmt.Sprintf(format, args...))
	}
	exists := func(file string) bool {
		_, err := fs.Stat(fsys, path.Clean(file))
		return err == nil
	}

	commands := codeSpan.FindAllStringSubmatch(markdown, -1)
	for _, block := range Blocks(markdown) {
		switch block.Language {
		case "go":
			if _, err := format.Source([]byte(block.Text)); err != nil {
				complain("the Go code at line %d does not parse: %v", block.Line, err)
			}
		case "sh", "bash", "shell", "console":
			commands = append(commands, []string{"", block.Text})
		}
	}
	targets := makeTargets(fsys)
	for _, command := range commands {
		for _, m := range makeCommand.FindAllStringSubmatch(command[1], -1) {
			if !slices.Contains(targets, m[1]) {
				complain("make %s: the Makefile has no such target", m[1])
			}
		}
		for _, m := range localPath.FindAllStringSubmatch(command[1], -1) {
			if p := strings.TrimSuffix(strings.TrimSuffix(m[1], "..."), "/"); !exists(p) {
				complain("%s does not exist", m[1])
			}
		}
	}
	prose := codeSpan.ReplaceAllString(fenced.ReplaceAllString(markdown, ""), "")
	for _, m := range link.FindAllStringSubmatch(prose, -1) {
		target, _, _ := strings.Cut(m[1], "#")
		if target != "" && !strings.Contains(target, ":") && !exists(path.Join(path.Dir(name), target)) {
			complain("the link to %s leads nowhere", m[1])
		}
	}
	for _, pkg := range t.packagesNamed(markdown) {
		if !exists(path.Join(".", relative(t.Modules["."], pkg))) {
			complain("there is no package %s", pkg)
		}
	}
	return problems, nil
}

// packagesNamed returns the import paths below the tree's own module that a
// text names. Web addresses of the repository are none.
func (t *Tree) packagesNamed(text string) []string {
	expression := regexp.MustCompile(`(https?://)?` + regexp.QuoteMeta(t.Modules["."]) + `((?:/[\w-]+)*)`)
	var packages []string
	for _, m := range expression.FindAllStringSubmatch(text, -1) {
		if m[1] == "" {
			packages = append(packages, t.Modules["."]+m[2])
		}
	}
	return packages
}

func makeTargets(fsys fs.FS) []string {
	text, err := fs.ReadFile(fsys, "Makefile")
	if err != nil {
		return nil
	}
	var targets []string
	for _, m := range regexp.MustCompile(`(?m)^([a-z][a-z-]*):`).FindAllStringSubmatch(string(text), -1) {
		targets = append(targets, m[1])
	}
	return targets
}
