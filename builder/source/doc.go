// Package source implements builder.Sources: it finds out what the URL of a source
// stands for and writes its tree into a folder of the build context. No shell and no
// tool of the base image takes part.
//
//	git://host/repo.git            over HTTPS, as nuclio and Kaniko do; see Config.Insecure
//	git+https://, git+http://      Git over smart HTTP
//	https://host/repo.git          the same; the path ends with ".git"
//	git+ssh://, ssh://, git@host:  Git over SSH; unknown host keys are refused
//	https://, http://              an archive or a single file
//	s3://bucket/key                Amazon S3 and what speaks its protocol
//	gs://, gcs://bucket/key        Google Cloud Storage
//	az://container/key             Azure Blob Storage of the account in the environment
//	wasb(s)://container@account.…  the same with the account's host
//	v3io(s)://host/container/path  Iguazio
//	context://sha256-<hex>.tar.gz  what `kiln build` uploaded; see Contexts
//
// A Git URL may end with "#branch", "#tag", "#refs/heads/x", "#refs/tags/x",
// "#<commit>" or MLRun's "#refs/heads/x#<commit>", and then ":folder" for a part of
// the repository. What is after "#" is not unescaped. A branch goes before a tag of
// the same name, as in MLRun; all digits of a commit are needed.
//
// A name that ends with .tar.gz, .tgz, .tar or .zip is an archive, and so is one
// without extension that begins like one; every other is a single file, which keeps
// its name. A folder that is alone at the top of an archive stays.
//
// Everything here comes from outside: archives, trees and servers are taken for
// hostile. See archive.Tree for what may become of them.
package source
