package archive

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"kiln/builder"
	"kiln/builder/source/archivetest"
)

// do is one call to a tree.
type do func(*Tree) error

func addFile(name, content string) do {
	return func(t *Tree) error { return t.File(name, 0o644, time.Time{}, -1, strings.NewReader(content)) }
}

func addFolder(name string) do { return func(t *Tree) error { return t.Folder(name, time.Time{}) } }

func addLink(name, target string) do {
	return func(t *Tree) error { return t.Link(name, target, time.Time{}) }
}

func addHard(name, earlier string) do {
	return func(t *Tree) error { return t.sameAs(name, earlier, time.Time{}) }
}

func play(t *Tree, steps []do) error {
	for _, step := range steps {
		if err := step(t); err != nil {
			return err
		}
	}
	return t.Finish()
}

func TestTreesAreWrittenAsTheyAre(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		steps []do
		want  []string
	}{
		"files and folders":         {[]do{addFolder("./a/"), addFile("a/b", "1"), addFile("c/d/e", "2")}, []string{"a/", "a/b=1", "c/", "c/d/", "c/d/e=2"}},
		"the root itself":           {[]do{addFolder("./"), addFile("./a", "1")}, []string{"a=1"}},
		"a file twice":              {[]do{addFile("a", "first"), addFile("a", "2")}, []string{"a=2"}},
		"a folder twice":            {[]do{addFolder("a"), addFile("a/b", "1"), addFolder("a")}, []string{"a/", "a/b=1"}},
		"a link in place of a file": {[]do{addFile("a", "1"), addFile("b", "2"), addLink("a", "b")}, []string{"a -> b", "b=2"}},
		"a file in place of a link": {[]do{addFile("b", "2"), addLink("a", "b"), addFile("a", "1")}, []string{"a=1", "b=2"}},
		"links inside":              {[]do{addFile("d/a", "1"), addLink("d/l", "../d/a"), addLink("m", "./d/./l"), addLink("gone", "d/nothing")}, []string{"d/", "d/a=1", "d/l -> ../d/a", "gone -> d/nothing", "m -> ./d/./l"}},
		"a hard link":               {[]do{addFile("a", "1"), addHard("d/b", "./a")}, []string{"a=1", "d/", "d/b=1"}},
		"a hard link then replaced": {[]do{addFile("a", "1"), addHard("b", "a"), addFile("a", "2")}, []string{"a=2", "b=1"}},
		"a hard link to a link":     {[]do{addLink("l", "x"), addHard("m", "l")}, []string{"l -> x", "m -> x"}},
		"a hard link to itself":     {[]do{addFile("a", "1"), addHard("a", "a")}, []string{"a=1"}},
		"other letters":             {[]do{addFile("день/ 日本", "1"), addFile(`back\slash`, "2")}, []string{`back\slash=2`, "день/", "день/ 日本=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := archivetest.NewFolder(t)
			if err := play(New(t.Context(), dir.Root, Limits{}.WithDefaults()), tc.steps); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, dir.List(t)); diff != "" {
				t.Errorf("tree (-want +got):\n%s", diff)
			}
			if err := play(New(t.Context(), nil, Limits{}.WithDefaults()), tc.steps); err != nil {
				t.Errorf("only checked: %v", err)
			}
		})
	}
}

func TestHostileTreesAreRefused(t *testing.T) {
	t.Parallel()
	limits := Limits{Unpacked: 1000, Entries: 50, Path: 300}.WithDefaults()
	chain := make([]do, 0, maxLinks+2)
	for i := range maxLinks + 2 {
		chain = append(chain, addLink(fmt.Sprintf("l%02d", i), fmt.Sprintf("l%02d", i+1)))
	}
	for name, tc := range map[string]struct {
		steps []do
		says  string
	}{
		"traversal":                  {[]do{addFile("../sentinel", "x")}, "leads out"},
		"traversal in the middle":    {[]do{addFolder("a"), addFile("a/../../../sentinel", "x")}, "leads out"},
		"absolute":                   {[]do{addFile("/sentinel", "x")}, "absolute"},
		"absolute folder":            {[]do{addFolder("/")}, "absolute"},
		"no name":                    {[]do{addFile("", "x")}, "without a name"},
		"zero byte":                  {[]do{addFile("a\x00b", "x")}, "zero byte"},
		"not UTF-8":                  {[]do{addFile("a\xff", "x")}, "UTF-8"},
		"long name":                  {[]do{addFile(strings.Repeat("a/", 200), "x")}, "longer"},
		"long part":                  {[]do{addFile(strings.Repeat("a", 256), "x")}, "longer"},
		"64 kB name":                 {[]do{addFile(strings.Repeat("a", 64<<10), "x")}, "longer"},
		"link out":                   {[]do{addLink("l", "../../sentinel")}, "leads out"},
		"link out of a folder":       {[]do{addLink("a/b/l", "../../../sentinel")}, "leads out"},
		"absolute link":              {[]do{addLink("l", "/etc/passwd")}, "absolute"},
		"link out by links":          {[]do{addLink("here", "."), addLink("l", "here/../x")}, "leads out"},
		"chain of links out":         {[]do{addFolder("a/b"), addLink("a/b/up", ".."), addLink("up2", "a/b/up/.."), addLink("out", "up2/../sentinel")}, "leads out"},
		"links that have no end":     {chain, "more than 40 links"},
		"link to itself":             {[]do{addLink("l", "l")}, "more than 40 links"},
		"writing through a link":     {[]do{addLink("l", ".."), addFile("l/sentinel", "x")}, "folder and something else"},
		"folder through a link":      {[]do{addLink("l", "."), addFolder("l/x")}, "folder and something else"},
		"folder becomes a link":      {[]do{addFile("a/b", "1"), addLink("a", "..")}, "folder and something else"},
		"file becomes a folder":      {[]do{addFile("a", "1"), addFile("a/b", "1")}, "folder and something else"},
		"hard link out":              {[]do{addHard("l", "../sentinel")}, "leads out"},
		"absolute hard link":         {[]do{addHard("l", "/etc/passwd")}, "absolute"},
		"hard link to nothing":       {[]do{addHard("l", "nothing")}, "not an earlier file"},
		"hard link to a folder":      {[]do{addFolder("a"), addHard("l", "a")}, "not an earlier file"},
		"too large":                  {[]do{addFile("a", strings.Repeat("x", 600)), addFile("b", strings.Repeat("x", 600))}, "1000 bytes"},
		"announced too large":        {[]do{func(t *Tree) error { return t.File("a", 0o644, time.Time{}, 1001, nil) }}, "1000 bytes"},
		"too many entries":           {slicesRepeat(addFile("a", "x"), 51), "limit of 50"},
		"too many folders on a path": {[]do{addFile(strings.Repeat("a/", 60)+"x", "1")}, "limit of 50"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := archivetest.NewFolder(t)
			for _, root := range []*os.Root{dir.Root, nil} {
				err := play(New(t.Context(), root, limits), tc.steps)
				if err == nil || builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(err.Error(), tc.says) {
					t.Errorf("got %v, want an invalid_request that says %q", err, tc.says)
				}
			}
			dir.CheckOutside(t)
		})
	}
}

func slicesRepeat(d do, n int) []do {
	steps := make([]do, n)
	for i := range steps {
		steps[i] = d
	}
	return steps
}

func TestModesAndTimesAreTame(t *testing.T) {
	t.Parallel()
	dir := archivetest.NewFolder(t)
	day := time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)
	tr := New(t.Context(), dir.Root, Limits{}.WithDefaults())
	err := play(tr, []do{
		func(t *Tree) error {
			return t.File("d/run", fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky|0o4755, day, -1, strings.NewReader("x"))
		},
		func(t *Tree) error { return t.File("d/closed", 0, time.Unix(0, 0), -1, strings.NewReader("x")) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		mode fs.FileMode
		at   time.Time
	}{
		"d/run": {0o755, day}, "d/closed": {0o600, ZipEpoch()}, "d": {fs.ModeDir | 0o755, day},
	} {
		info, err := dir.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want.mode || !info.ModTime().Equal(want.at) {
			t.Errorf("%s is %s of %s, want %s of %s", name, info.Mode(), info.ModTime(), want.mode, want.at)
		}
	}
}

func TestRatioCountsFromASizeOn(t *testing.T) {
	t.Parallel()
	tr := New(t.Context(), nil, Limits{Ratio: 10}.WithDefaults())
	tr.packed, tr.ratioFrom = func() int64 { return 1 << 20 }, 11<<20
	if err := tr.File("small", 0o644, time.Time{}, -1, io.LimitReader(archivetest.Zeros{}, 11<<20)); err != nil {
		t.Errorf("up to the size: %v", err)
	}
	err := tr.File("large", 0o644, time.Time{}, -1, io.LimitReader(archivetest.Zeros{}, 1<<20))
	if builder.KindOf(err) != builder.KindInvalidRequest || !strings.Contains(fmt.Sprint(err), "10 times") {
		t.Errorf("beyond it: %v", err)
	}
}

// FuzzTree plays any sequence of entries: a line is "f name", "d name", "l name target"
// or "h name earlier", with tabs between.
func FuzzTree(f *testing.F) {
	for _, seed := range []string{
		"d\ta\nf\ta/b\nl\tc\ta/b\nh\td\ta/b\nf\ta/b",
		"l\ta\t.\nl\tb\ta/..\nf\ta/x\nl\tc\tb/../b",
		"f\t../x\nd\t/\nl\tx\t/etc\nh\tx\t../y\nl\tl\tl",
		"l\ta/b/up\t..\nl\tup2\ta/b/up/..\nl\tout\tup2/../sentinel",
	} {
		f.Add(seed)
	}
	limits := Limits{Unpacked: 1 << 10, Entries: 50, Path: 100}.WithDefaults()
	f.Fuzz(func(t *testing.T, script string) {
		var steps []do
		for line := range strings.SplitSeq(script, "\n") {
			what, rest, _ := strings.Cut(line, "\t")
			name, other, _ := strings.Cut(rest, "\t")
			switch what {
			case "f":
				steps = append(steps, addFile(name, other))
			case "d":
				steps = append(steps, addFolder(name))
			case "l":
				steps = append(steps, addLink(name, other))
			case "h":
				steps = append(steps, addHard(name, other))
			}
		}
		dir := archivetest.NewFolder(t)
		err := play(New(t.Context(), dir.Root, limits), steps)
		dir.CheckOutside(t)
		if checked := play(New(t.Context(), nil, limits), steps); (checked == nil) != (err == nil) {
			t.Fatalf("written: %v, only checked: %v", err, checked)
		}
		if err == nil {
			dir.CheckLinks(t)
		}
	})
}
