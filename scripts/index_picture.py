"""nbs/images/same_action.jpg: one action of the shipped world, seen by the hand, by the room at that moment, and by another room."""
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from viewpoint_rosetta.clips import pool, read_clips, sync_pairs
from viewpoint_rosetta.video import clip_frames
from viewpoint_rosetta.world import shipped

ACTION, FRAMES, SIDE, GAP = "drawer-open", 5, 128, 4
SAID = ("filmed by a person", "filmed of that person, at the same moment: rare", "another person, another room: to be found")


def main() -> Path:
    clips = read_clips(shipped())
    paired, free = pool(clips, "paired"), pool(clips, "exo")
    moment = sync_pairs(paired[paired.label == ACTION].reset_index(drop=True)).iloc[0]
    ego, exo = (paired[paired.clip_id == clip_id].iloc[0] for clip_id in (moment.ego, moment.exo))
    found = free[(free.label == ACTION) & (free.scene != ego.scene) & (free.participant != ego.participant)].iloc[0]
    width, line = FRAMES * (SIDE + GAP) - GAP, 20
    sheet = Image.new("RGB", (width, 3 * (SIDE + line + GAP) - GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for i, (row, said) in enumerate(zip((ego, exo, found), SAID)):
        y = i * (SIDE + line + GAP)
        narration = f': "{row.narration}"' if isinstance(row.narration, str) else ""
        pen.text((0, y + 2), said + narration, "black", font)
        for k, frame in enumerate(clip_frames(clips, row.clip_id, FRAMES)):
            sheet.paste(Image.fromarray(np.asarray(frame)).resize((SIDE, SIDE)), (k * (SIDE + GAP), y + line))
    out = Path(__file__).parent.parent / "nbs" / "images" / "same_action.jpg"
    sheet.save(out, quality=88)
    return out


if __name__ == "__main__":
    print(main())
