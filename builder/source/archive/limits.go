package archive

// Limits bound one source. Zero values are defaults.
type Limits struct {
	// Download is the size of what is downloaded, in bytes; for Git that of the packed
	// objects. Defaults to 2 GiB.
	Download int64
	// Unpacked is the size of all files together, in bytes. Defaults to 8 GiB.
	Unpacked int64
	// Entries is the number of files, folders and links. Defaults to 250,000.
	Entries int
	// Ratio is how much larger than the archive the files may be, once they are larger
	// than 64 MiB. Defaults to 200.
	Ratio int64
	// Path is the length of a name with its folders, in bytes. Defaults to 1024.
	Path int
}

// WithDefaults replaces what is zero.
func (l Limits) WithDefaults() Limits {
	if l.Download == 0 {
		l.Download = 2 << 30
	}
	if l.Unpacked == 0 {
		l.Unpacked = 8 << 30
	}
	if l.Entries == 0 {
		l.Entries = 250_000
	}
	if l.Ratio == 0 {
		l.Ratio = 200
	}
	if l.Path == 0 {
		l.Path = 1024
	}
	return l
}
