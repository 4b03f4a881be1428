"""`tubelet prepare`: small copies of the videos, from which training reads several times faster."""

from tubelet.cli._print import emit_json, note, tell


def command(
    *data: str,
    short_side: int = 256,
    gop_frames: int = 16,
    crf: int = 18,
    trim: bool = False,
    pack: bool = False,
    shard_megabytes: int = 512,
    workers: int | None = None,
    json: bool = False,
) -> int:
    """Write small, quickly decoded copies of all videos once, into the folder named last: `tubelet prepare DIR... OUT`.

    Frames and their times stay exactly those of the source; sound is dropped. OUT has the same class folders, splits and
    table, and is used in the place of DIR from then on; of several DIRs each gets a folder of its own in OUT. The same
    command continues, and does again what has changed. A video that cannot be read is named; the others are still
    written, and the exit code is 2.

    Parameters
    ----------
    data
        Folders or tables of videos and, last, the folder to write.
    short_side
        Height or width, whichever is less: 160 to 320 pixels. Smaller videos keep their size.
    gop_frames
        Frames from one key frame to the next. 1 is best for clips of frames that lie far apart (`segments` sampling) and
        takes two to three times the space.
    crf
        Quality, 0 to 40: lower is better and larger.
    trim
        Of a table with start and end: a file of its own for every part that a row names, and nothing of the videos beside.
    pack
        Copy the videos as they are into tars with an index instead (to have both, pack what was prepared): for very many
        videos, slow disks and object storage. Every shard is read back, and the same command continues.
    shard_megabytes
        About the size of a tar.
    workers
        Videos, or tars, at a time. Default: one per core.
    json
        Print a JSON list with one object per DIR instead.
    """
    from tubelet.errors import ConfigError, DataError
    from tubelet.pack import pack_many
    from tubelet.prepare import PrepareConfig, prepare_many

    if len(data) < 2:
        raise DataError("give the videos and, last, the folder to write: tubelet prepare DIR... OUT")
    *paths, out = data
    config = PrepareConfig(short_side, gop_frames, crf, trim)
    if pack:
        if config != PrepareConfig():
            raise ConfigError(
                "--pack copies videos as they are: prepare them first, then pack that folder without the other flags"
            )
        packed = pack_many(paths, out, shard_megabytes * 1_000_000, workers)
        for path, reason in (gone for one in packed for gone in one.left_out):
            note(f"left out: {path}: {reason}")
        if json:
            emit_json([one.to_json() for one in packed])
        else:
            for written in packed:
                tell(written.to_text())
        return 2 if any(one.left_out for one in packed) else 0
    done = prepare_many(paths, out, config, workers)
    for prepared in done:
        for one in prepared.left_out:
            note(f"left out: {one.path}: {one.error}")
    if json:
        emit_json([prepared.to_json() for prepared in done])
    else:
        for prepared in done:
            print(prepared.to_text())
    return 2 if any(prepared.left_out for prepared in done) else 0
