package builder

// hints tell the user what to do, in one sentence, for every kind that travels.
func hints() map[Kind]string {
	return map[Kind]string{
		KindInvalidRequest:     "Correct what the message names and publish the request again.",
		KindConflict:           "Publish the request again under an id of its own.",
		KindBaseNotFound:       "Check the name and tag of the base image, and that it exists for the platform.",
		KindSourceNotFound:     "Check the address, branch and credentials of the source.",
		KindCommandFailed:      "Read the last lines of the log and correct the command that the message names.",
		KindRequirementsFailed: "Read the last lines of the log; check names and versions of the requirements and that the package index can be reached.",
		KindPushDenied:         "Give the worker credentials that may push to the target's repository, or choose another target image.",
		KindPullDenied:         "Give the worker credentials that may pull the base image, or check its name: some registries answer so for images that do not exist.",
		KindTimeout:            "Make the build faster, or raise options.timeout (a Go duration such as 1h).",
		KindOutOfMemory:        "Make the build use less memory, or have the operator raise the memory limit of builds.",
		KindDiskFull:           "Make the image smaller, or have the operator raise the disk limit of builds or free space.",
		KindCanceled:           "Publish the request again if the image is still wanted.",
		KindUnavailable:        "Nothing is wrong with the request: publish it again later, and tell the operator if this goes on.",
	}
}

// Hint tells the user what to do about an error of this kind, in one sentence.
// Kinds that never travel have none.
func (k Kind) Hint() string { return hints()[k] }

// Retryable reports whether the same request may succeed later without a change.
func (k Kind) Retryable() bool {
	return k == KindUnavailable || k == KindTimeout || k == KindPushDenied || k == KindPullDenied || k == KindDiskFull
}
